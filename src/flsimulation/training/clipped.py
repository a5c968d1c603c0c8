"""Clips the updates of clients that were trained, one by one or a wave of them at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from flsimulation.errors import ClientError
from flsimulation.privacy import transforms
from flsimulation.training.jobs import Job, State, Terms, Trained

if TYPE_CHECKING:
    from flsimulation.training.stacked.wave import Wave


def clipped(
    done: Trained, model: State, job: Job, terms: Terms, updated: Mapping[str, str]
) -> Trained:
    """One client's result with its update as the terms require it.

    Parameters
    ----------
    done : Trained
        As training ended.
    model : dict of Tensor
        The global model.
    job : Job
        The client's; the noise is drawn from its generator.
    terms : Terms
        The same result is returned if they allow any update.
    updated : mapping
        Names of an update; all other parts of the model are those of the global one.
    """
    if not terms.clip:
        return done
    rows = {name: done.state[name].detach()[None] for name in updated}
    lengths = transforms.norms(rows, model, updated)
    kept = transforms.shares(lengths, terms.clip)
    own = transforms.client(rows, model, updated, kept, terms.noise, _noises([job]))
    state = {**model, **{name: value[0] for name, value in own.items()}}
    return done._replace(state=state, is_whole=bool(lengths[0] <= terms.clip))


def clipped_wave(
    wave: Wave, start: State, jobs: Sequence[Job], terms: Terms, updated: Mapping[str, str]
) -> Wave:
    """A wave's clients with their updates as the terms require them, or their mean model.

    Parameters
    ----------
    wave : Wave
        As training ended, on the device that trained it.
    start : dict of Tensor
        The global model on that device, in the module's types.
    jobs : sequence of Job
        The clients', in the wave's order.
    terms, updated
        As of `clipped`; updates have a largest norm.
    """
    sound = [p for p, result in enumerate(wave.results) if not isinstance(result, ClientError)]
    if not sound:
        return replace(wave, weights={}, own=frozenset()) if terms.average else wave
    places = torch.tensor(sound)
    whole = len(sound) == len(wave.results)
    rows = {
        name: wave.weights[name] if whole else wave.weights[name][places.to(start[name].device)]
        for name in updated
        if name in wave.own
    }
    lengths = transforms.norms(rows, start, updated)
    kept = transforms.shares(lengths, terms.clip)
    results = list(wave.results)
    for place, is_whole in zip(sound, (lengths <= terms.clip).tolist(), strict=True):
        results[place] = results[place]._replace(is_whole=is_whole)  # type: ignore[union-attr]
    if terms.average and not terms.noise:
        mean = transforms.mean_of_clipped(rows, start, updated, kept)
        return replace(wave, results=results, weights={**start, **mean}, own=frozenset())
    noises = _noises([jobs[place] for place in sound])
    own = transforms.client(rows, start, updated, kept, terms.noise, noises)
    count = len(results)
    weights = dict(start)
    for name, value in own.items():
        if whole:
            weights[name] = value
        else:
            weights[name] = start[name].expand(count, *start[name].shape).clone()
            weights[name][places.to(value.device)] = value
    sent = replace(wave, results=results, weights=weights, own=frozenset(own))
    return sent.averaged() if terms.average else sent


def _noises(jobs: Sequence[Job]) -> list[transforms.Noise]:
    return [job.noise for job in jobs if job.noise is not None]
