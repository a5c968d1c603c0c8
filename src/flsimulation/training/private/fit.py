"""DP-SGD of a wave of clients: steps with the noisy sums of clipped gradients.

Source: Abadi et al., "Deep Learning with Differential Privacy" (CCS 2016), algorithm 1: each example of
a step is drawn independently, its gradient is clipped to a norm C, noise with standard deviation sigma C
is added to the sum, which is divided by the size that samples have on average.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from flsimulation.clock import Clock
from flsimulation.data.leaves import Leaves
from flsimulation.errors import ClientError
from flsimulation.privacy.draws import Draws, seed_of
from flsimulation.privacy.normals import Normals
from flsimulation.seeds import global_streams
from flsimulation.training.failures import loss_not_finite, too_late, weights_not_finite
from flsimulation.training.jobs import Job, State, Terms, Trained
from flsimulation.training.logged import reduced
from flsimulation.training.private.gradients import Gradients
from flsimulation.training.private.samples import Samples
from flsimulation.training.rates import scale_rates
from flsimulation.training.scores import scores
from flsimulation.training.stacked.compiler.draws import Draw
from flsimulation.training.stacked.eligible import Clip, Optimization, clipped, stack_optimizer
from flsimulation.training.stacked.rows import diverged_clients


@dataclass(frozen=True, eq=False)
class Private:
    """What all fits of a module have in common."""

    gradients: Gradients
    names: list[str]
    """Of the trained parameters, tied ones once."""
    aliases: dict[str, str]
    """For each name of a parameter the one that stands for it."""
    parameters: list[nn.Parameter]
    """The module's own, in the order of ``names``."""
    optimization: Callable[[int, int], Optimization]
    """Returns a new optimizer, for a number of batches an epoch and the number of a round."""
    draws: Sequence[Draw] | None
    """What the step of one example draws; None if it draws from the global generators."""
    epochs: int
    noise: float
    """Standard deviation of the noise on each number of a sum."""
    clip: Clip | None
    """Of the noisy gradient, as ``train.gradient-clip``."""
    data: tuple[Leaves, Leaves]
    device: torch.device
    clock: Clock


class Fit:
    """One wave's training, from the global model to the clients' own.

    Parameters
    ----------
    private : Private
        Of the module.
    start : dict of Tensor
        The global model.
    jobs : sequence of Job
        The wave's.
    terms : Terms
        Of the round.
    factor : float
        On the learning rates.
    """

    def __init__(
        self, private: Private, start: State, jobs: Sequence[Job], terms: Terms, factor: float
    ) -> None:
        self._private, self._start, self._jobs, self._terms = private, start, jobs, terms
        self._generators = [_generator(job) for job in jobs]
        clients = [job.batches for job in jobs]
        self._samples = Samples(
            private.data,
            clients,
            private.epochs,
            self._generators,
            private.device,
            private.draws or (),
        )
        self._origin = [start[name].to(private.device) for name in private.names]
        self._leaves = [
            nn.Parameter(
                t.expand(len(jobs), *t.shape).clone(memory_format=torch.contiguous_format),
                requires_grad=False,
            )
            for t in self._origin
        ]
        self._optimizer, self._schedulers = private.optimization(len(clients[0]), jobs[0].round)
        pairs = zip(private.parameters, self._leaves, strict=True)
        stack_optimizer(self._optimizer, {id(parameter): leaf for parameter, leaf in pairs})
        scale_rates(self._optimizer, factor)
        self._expected = torch.from_numpy(self._samples.expected).to(self._leaves[0])
        self._normals = Normals([origin.numel() for origin in self._origin], private.device)
        self._deviations = [private.noise / float(n) for n in self._samples.expected]
        self._ended: dict[int, list[Tensor]] = {}
        self._late = np.zeros(len(jobs), bool)
        self._losses: list[np.ndarray] = []
        self._weights: list[np.ndarray] = []

    def run(self) -> list[Trained | ClientError]:
        """Train the clients; a result for each."""
        if self._private.draws is not None:
            return self._run()
        (own,) = self._generators  # such clients train alone
        with global_streams(seed_of(own)):
            return self._run()

    def _run(self) -> list[Trained | ClientError]:
        private, began = self._private, self._private.clock.monotonic()
        steps, per_epoch = int(self._samples.taken.max()), len(self._jobs[0].batches)
        with torch.no_grad():
            for step in range(steps):
                expires = self._terms.expires
                if expires is not None and private.clock.time() > expires:
                    self._late = self._samples.taken > step
                    break
                self._step(step)
                self._schedule(step % per_epoch + 1, (step + 1) // per_epoch, per_epoch)
                for place in np.flatnonzero(self._samples.taken == step + 1):
                    self._ended[int(place)] = [leaf[place].clone() for leaf in self._leaves]
        seconds = (private.clock.monotonic() - began) / len(self._jobs)
        return self._results(seconds)

    def _step(self, step: int) -> None:
        examples = self._samples.of(step)
        weighted = examples._replace(kept=examples.kept / self._expected.unsqueeze(1))
        taken = self._private.gradients([leaf.data for leaf in self._leaves], weighted)
        self._note(torch.stack([taken.losses, *taken.logged]), examples.kept, step)
        gradients: list[Tensor | None] = [*self._noisy(taken.sums)]
        if mu := self._terms.proximal_mu:
            moved = zip(gradients, self._leaves, self._origin, strict=True)
            gradients = [g.add(leaf - o, alpha=mu) for g, leaf, o in moved if g is not None]
        if self._private.clip is not None:
            gradients = clipped(gradients, self._private.clip)
        for leaf, gradient in zip(self._leaves, gradients, strict=True):
            # PyTorch's fused optimizers go by the memory
            leaf.grad = None if gradient is None else gradient.contiguous()
        self._optimizer.step()

    def _noisy(self, sums: Sequence[Tensor]) -> list[Tensor]:
        """The sums, which are divided by the expected size of a sample, with noise.

        Client by client, so that a client's noise stays in a core's cache.
        """
        # PyTorch's fused optimizers go by the memory
        found = [total.contiguous() for total in sums]
        rows = [total.view(len(total), -1) for total in found]
        self._normals.add(rows, self._generators, self._deviations)
        return found

    def _note(self, values: Tensor, kept: Tensor, step: int) -> None:
        """Note means over the examples that were drawn, of a client's last epoch.

        Of an empty sample the first example that fills it up stands for the loss, if no other does. An example whose loss is
        not finite is left out where others have one: else a single one would end its client's training.
        """
        count = kept.sum(1)
        first = torch.zeros_like(kept)
        first[:, 0] = 1
        weights = torch.where(count.unsqueeze(1) > 0, kept, first)
        sound = weights * values[0].isfinite()
        has_sound = sound.sum(1, keepdim=True) > 0
        weights = torch.where(has_sound, sound, weights)
        weights = weights / weights.sum(1, keepdim=True)
        counted = torch.where(weights > 0, values.double(), 0.0)  # others may not be finite
        self._losses.append((counted * weights).sum(2).cpu().numpy())
        in_last = (self._samples.last_epoch <= step) & (step < self._samples.taken)
        few = torch.where((count > 0) & has_sound[:, 0], count, 1e-9).cpu().numpy()
        self._weights.append(np.where(in_last, few, 0.0))

    def _schedule(self, batch: int, ends: int, per_epoch: int) -> None:
        for scheduler, interval, frequency in self._schedulers:
            number = batch if interval == "step" else ends if batch == per_epoch else 0
            if number and number % frequency == 0:
                scheduler.step()

    def _results(self, seconds: float) -> list[Trained | ClientError]:
        for place, rows in self._ended.items():
            for leaf, row in zip(self._leaves, rows, strict=True):
                leaf.data[place] = row
        own = {
            n: leaf.data.cpu() for n, leaf in zip(self._private.names, self._leaves, strict=True)
        }
        unsound = diverged_clients(own, [origin.cpu() for origin in self._origin])
        found: list[Trained | ClientError] = []
        for place in range(len(self._jobs)):
            if self._late[place]:
                found.append(too_late())
            elif (failed := self._samples.failed.get(place)) is not None:
                found.append(failed)
            elif (name := unsound.get(place)) is not None:
                found.append(weights_not_finite(name))
            else:
                found.append(self._trained(place, own, seconds))
        return found

    def _trained(self, place: int, own: State, seconds: float) -> Trained | ClientError:
        weights = np.array([step[place] for step in self._weights])
        values = np.array([step[:, place] for step in self._losses])
        sound = (weights > 0) & np.isfinite(values[:, 0])
        taken = sound if sound.any() else weights > 0
        values, weights = values[taken], weights[taken]
        loss = float((values[:, 0] * weights).sum() / weights.sum())
        if not np.isfinite(loss):
            return loss_not_finite(loss)
        logged = reduced(self._private.gradients.how, values[:, 1:], weights)
        names = self._private.aliases
        state = {
            name: own[first][place] if (first := names.get(name, name)) in own else value
            for name, value in self._start.items()
        }
        steps = int(self._samples.taken[place])
        return Trained(scores(logged, {"loss": loss}), steps, seconds, state)


def _generator(job: Job) -> Draws:
    """What a client's samples and its noise are drawn from."""
    if job.noise is None:
        raise ValueError(f"client {job.partition} has no generator for its noise")
    return job.noise()
