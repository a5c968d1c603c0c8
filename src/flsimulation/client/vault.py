"""Where a client keeps the secret from which its keys of secure aggregation are derived.

On a network the secret is drawn from the system's entropy, and stays in Flower's state of the client, in
the memory of the client's own programs; it is in no file, no log and no message, and is deleted with the
round. While one is used, that of the next round exists already. In a simulation, where one machine is
all clients, it is a function of the experiment's seed, so that any process can be any client; that hides
nothing from who knows the seed.
"""

from __future__ import annotations

import secrets
from typing import Protocol, cast

import numpy as np
from flwr.app import ConfigRecord, RecordDict

from flsimulation import seeds
from flsimulation.errors import ClientError
from flsimulation.events import Phase
from flsimulation.privacy.masks import SECRET_BYTES

_RECORD = "flsim-secure-aggregation-"  # and the round in which it was made
_BEFORE: dict[Phase, str] = {"shares": "keys", "train": "shares", "unmask": "train"}


class Vault(Protocol):
    """Keeps secrets of clients, each of which is used once in each phase and in their order."""

    def create(self, partition: int, made: int, keep: int = 0) -> bytes:
        """A new secret in place of all others of the client.

        Parameters
        ----------
        partition : int
            The client.
        made : int
            The round for which it is made.
        keep : int
            The round of a secret that is still used.
        """

    def use(self, partition: int, made: int, phase: Phase, peers: bytes) -> bytes:
        """The secret that was made for a round, for its next phase.

        Parameters
        ----------
        partition, made
            As in `create`.
        phase : {"shares", "train", "unmask"}
            The phase it is used in, once.
        peers : bytes
            A digest of the neighbours and their keys, the same in all phases.

        Raises
        ------
        ClientError
            If there is none, or it was used in this phase before, or with other neighbours.
        """

    def delete(self, partition: int, made: int) -> None:
        """Forget a secret."""

    def draws(self, partition: int, round: int) -> np.random.Generator:
        """The stream of a client's rounding in a round."""


class SeededVault:
    """Secrets of a simulation.

    Parameters
    ----------
    seed : int
        Of the experiment.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def create(self, partition: int, made: int, keep: int = 0) -> bytes:  # noqa: ARG002
        """The secret of a client and a round."""
        return seeds.rng(self._seed, "secure-secret", made, partition).bytes(SECRET_BYTES)

    def use(self, partition: int, made: int, phase: Phase, peers: bytes) -> bytes:  # noqa: ARG002
        """The same again: the server is this program too."""
        return self.create(partition, made)

    def delete(self, partition: int, made: int) -> None:
        """Do nothing: nothing is kept."""

    def draws(self, partition: int, round: int) -> np.random.Generator:
        """The stream of a client's rounding in a round."""
        return seeds.rng(self._seed, "secure-rounding", round, partition)


class KeptVault:
    """The secrets of one client of a network.

    Parameters
    ----------
    state : RecordDict
        The state that Flower keeps of the client between its messages.
    """

    def __init__(self, state: RecordDict) -> None:
        self._state = state

    def create(self, partition: int, made: int, keep: int = 0) -> bytes:
        """A new secret of the system's entropy."""
        for name in [*self._state]:
            if name.startswith(_RECORD) and name != f"{_RECORD}{keep}":
                del self._state[name]
        secret = secrets.token_bytes(SECRET_BYTES)
        self._state[f"{_RECORD}{made}"] = ConfigRecord(
            {"partition": partition, "phase": "keys", "peers": b"", "secret": secret}
        )
        return secret

    def use(self, partition: int, made: int, phase: Phase, peers: bytes) -> bytes:
        """The secret, if it is its turn."""
        name = f"{_RECORD}{made}"
        kept = cast(ConfigRecord | None, self._state.get(name))
        if kept is None or kept["partition"] != partition:
            raise ClientError(
                "error", f"it has no secret of round {made}: its program was started again since"
            )
        if kept["phase"] != _BEFORE[phase] or (phase != "shares" and kept["peers"] != peers):
            raise ClientError(
                "error",
                f"the server requests {phase!r} again, or with other neighbours, which could show its update; it refuses",
            )
        self._state[name] = ConfigRecord({**kept, "phase": str(phase), "peers": peers})
        return cast(bytes, kept["secret"])

    def delete(self, partition: int, made: int) -> None:  # noqa: ARG002 - of one client
        """Forget a secret."""
        self._state.pop(f"{_RECORD}{made}", None)

    def draws(self, partition: int, round: int) -> np.random.Generator:  # noqa: ARG002
        """A stream of the system's entropy."""
        return np.random.default_rng(secrets.randbits(128))
