"""A client's part in secure aggregation: its keys, shares of them, a masked update, the unmasking.

The protocol of Bell et al. (CCS 2020) for clients and a server that follow it. What the server could
request to learn an update all the same is refused: a second masked update or another graph under one secret
(`vault`), both secrets of one client, a sum of too few.
"""

from __future__ import annotations

import base64
import hashlib
import json
from typing import NamedTuple, cast

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord

from flsimulation.client.vault import Vault
from flsimulation.errors import ClientError
from flsimulation.events import Phase
from flsimulation.experiment import Experiment
from flsimulation.messages.arrays import HeldArray, joined
from flsimulation.messages.batch import Outcome
from flsimulation.messages.vectors import MASKED, NEXT, change_of
from flsimulation.privacy.clients import WHOLE
from flsimulation.privacy.field import Field, weighs_clients
from flsimulation.privacy.graph import Plan, plan_for
from flsimulation.privacy.masks import Keys, PublicKeys, own_mask, split


class _Peers(NamedTuple):
    """What the server says of a client's place in the graph."""

    made: int
    plan: Plan
    keys: dict[int, PublicKeys]
    """Of the neighbours, by partition, ascending."""
    digest: bytes


class SecureClient:
    """The clients of this process.

    Parameters
    ----------
    experiment : Experiment
        Its section ``privacy`` is what a client checks the server's requests against.
    vault : Vault
        Keeps the secrets.
    """

    def __init__(self, experiment: Experiment, vault: Vault) -> None:
        self._spec, self._vault = experiment.privacy, vault

    def reply(
        self, phase: Phase, round: int, partition: int, own: ConfigRecord | None, examples: int
    ) -> Outcome:
        """The outcome of the phase ``keys``, ``shares`` or ``unmask``.

        Parameters
        ----------
        phase, round, partition
            Of the task.
        own : ConfigRecord, optional
            What the server sends this client; nothing for its keys.
        examples : int
            On which the client trains.
        """
        try:
            if phase == "keys":
                content = self._keys(partition, round)
            elif phase == "shares":
                content = self._shares(partition, own)
            else:
                content = self._unmask(partition, own)
        except ClientError as error:
            return Outcome(partition, phase, {}, error)
        except ValueError as error:  # a neighbour's key or share is of no use
            return Outcome(partition, phase, {}, ClientError("error", str(error)))
        metrics: dict[str, float] = {"num-examples": examples}
        return Outcome(partition, phase, metrics, text=json.dumps(content))

    def masked(
        self, outcome: Outcome, before: ArrayRecord, round: int, own: ConfigRecord
    ) -> Outcome:
        """The outcome of a training with the masked update in place of the model.

        Parameters
        ----------
        outcome : Outcome
            As trained; a failure is returned unchanged.
        before : ArrayRecord
            The global model.
        round : int
            Of the task.
        own : ConfigRecord
            What the server sent this client.
        """
        if outcome.error is not None or outcome.model is None:
            return outcome
        partition = outcome.partition
        try:
            peers, senders = self._peers(own), cast(list[int], own["senders"])
            if len({*senders}) < peers.plan.threshold or not {*senders} <= peers.keys.keys():
                raise ClientError(
                    "error", f"the server requests masks with {len(senders)} clients; it refuses"
                )
            change = change_of(outcome.model, before)
            if not np.isfinite(change).all():
                raise ClientError("diverged", "its weights are not finite")
            field = Field.of(self._spec, peers.plan.clients)
            share = min(
                1.0, outcome.metrics["num-examples"] / max(1, int(cast(int, own["examples"])))
            )
            weight = field.room(len(change)) if weighs_clients(self._spec) else share
            words, cut = field.encoded(change, self._vault.draws(partition, round), weight)
            keys = Keys(self._vault.use(partition, peers.made, "train", peers.digest))
            words += own_mask(keys.own_seed, len(words))
            for other in senders:
                mask = keys.mask_between(peers.keys[other].masking, len(words))
                words = words + mask if partition < other else words - mask
        except ClientError as error:
            return Outcome(partition, "train", {}, error)
        except ValueError as error:
            return Outcome(partition, "train", {}, ClientError("error", str(error)))
        said: dict[str, object] = {"cut": cut}
        if made := int(cast(int, own["next"])):
            said |= self._keys(partition, made, peers.made)
        model = joined({MASKED: HeldArray(words)})
        metrics = {name: value for name, value in outcome.metrics.items() if name != WHOLE}
        return outcome._replace(metrics=metrics, model=model, text=json.dumps(said))

    def _keys(self, partition: int, made: int, keep: int = 0) -> dict[str, object]:
        public = Keys(self._vault.create(partition, made, keep)).public
        return {"keys": _text(public.joined())}

    def _shares(self, partition: int, own: ConfigRecord | None, of: str = "") -> dict[str, object]:
        peers = self._peers(own, of)
        keys = Keys(self._vault.use(partition, peers.made, "shares", peers.digest))
        threshold, count = peers.plan.threshold, len(peers.keys)
        parts = zip(
            split(keys.own_seed, threshold, count),
            split(keys.mask_seed, threshold, count),
            strict=True,
        )
        return {
            f"{of}{other}": _text(keys.sealed(both, public.sealing, f"{partition} to {other}"))
            for both, (other, public) in zip(parts, peers.keys.items(), strict=True)
        }

    def _unmask(self, partition: int, own: ConfigRecord | None) -> dict[str, object]:
        peers = self._peers(own)
        assert own is not None  # noqa: S101 - else there would be no peers
        others, living = cast(list[int], own["others"]), int(cast(int, own["alive"]))
        survivors = int(cast(int, own["survivors"]))
        known = {*others} <= peers.keys.keys() and len({*others}) == len(others)
        if not known or survivors < peers.plan.least:
            raise ClientError(
                "error",
                f"the server requests more than the sum of {peers.plan.least} updates; it refuses",
            )
        keys = Keys(self._vault.use(partition, peers.made, "unmask", peers.digest))
        content: dict[str, object] = {}
        all_sealed = cast(list[bytes], own["sealed"])
        for place, (other, sealed) in enumerate(zip(others, all_sealed, strict=True)):
            both = keys.opened(sealed, peers.keys[other].sealing, f"{other} to {partition}")
            content[str(other)] = _text(both[0] if place < living else both[1])
        self._vault.delete(partition, peers.made)
        if f"{NEXT}made" in own:
            content |= self._shares(partition, own, NEXT)
        return content

    def _peers(self, own: ConfigRecord | None, of: str = "") -> _Peers:
        """The neighbours in a request, if they are as many as the experiment says.

        Parameters
        ----------
        own : ConfigRecord, optional
            The request.
        of : str
            `NEXT` for those of the next round.
        """
        if own is None:
            raise ClientError("error", "the server sent no keys of other clients")
        partitions = cast(list[int], own[f"{of}neighbours"])
        keys = cast(list[bytes], own[f"{of}keys"])
        try:
            clients = int(cast(int, own[f"{of}clients"]))
            plan = plan_for(clients, self._spec.assumed_dropped, self._spec.assumed_corrupt)
            found = {p: PublicKeys.of(k) for p, k in zip(partitions, keys, strict=True)}
        except ValueError as error:
            raise ClientError("error", f"the server's keys cannot be used: {error}") from None
        if len(found) != plan.neighbours:
            raise ClientError(
                "error", f"the server sent keys of {len(found)} clients, not {plan.neighbours}"
            )
        digest = hashlib.sha256(repr((clients, sorted(found.items()))).encode()).digest()
        return _Peers(int(cast(int, own[f"{of}made"])), plan, dict(sorted(found.items())), digest)


def _text(content: bytes) -> str:
    return base64.b64encode(content).decode()
