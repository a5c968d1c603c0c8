"""The table ``privacy`` of an experiment file."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from flsimulation.experiment.section import Section, kebab

Mode = Literal["none", "central", "local", "example"]

_SECURE = ("secure_aggregation", "assumed_dropped", "assumed_corrupt", "largest_change")
_ADAPTIVE = ("clip_quantile", "clip_learning_rate", "clip_count_noise")


class Privacy(Section):
    """Differential privacy: what is hidden, by how much noise, and how much may be spent."""

    mode: Mode = "none"
    """Whose part in the training is hidden. `none`: nobody's. `central`: each client's, from all who see the
    global models; the server adds the noise. `local`: each client's, from the server too; each client adds
    noise to its own update. `example`: each example's, from all who see a client's update (DP-SGD in the client)."""
    clip: Annotated[float, Field(gt=0)] = 1.0
    """Largest L2 norm of a client's update (`central`, `local`) or of the gradient of one example (`example`);
    a longer one is scaled down to it. With `clipping = "adaptive"` the norm of the first round."""
    clipping: Literal["fixed", "adaptive"] = "fixed"
    """For `central`: whether the norm follows the quantile `clip-quantile` of the clients' updates (Andrew et al.,
    "Differentially Private Learning with Adaptive Clipping", NeurIPS 2021)."""
    clip_quantile: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """For adaptive clipping: the share of the clients whose update is not clipped."""
    clip_learning_rate: Annotated[float, Field(gt=0)] = 0.2
    """For adaptive clipping: how fast the norm follows the quantile."""
    clip_count_noise: Annotated[float, Field(ge=0)] = 0.0
    """For adaptive clipping: standard deviation of the noise on the number of clients that are not clipped; 0 for a
    twentieth of the clients that train in a round."""
    noise_multiplier: Annotated[float, Field(ge=0)] = 0.0
    """Standard deviation of the noise on the sum, divided by `clip`; 0 to compute it from `epsilon`."""
    epsilon: Annotated[float, Field(ge=0)] = 0.0
    """Epsilon of the whole run, from which the noise multiplier is computed; 0 if `noise-multiplier` is set."""
    delta: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    """Delta of the guarantee; less than one divided by the number of clients, or of a client's examples in `example`."""
    budget_epsilon: Annotated[float, Field(ge=0)] = 0.0
    """The run stops before the round that would exceed this epsilon, and keeps the last model; 0 for no limit."""
    accountant: Literal["rdp", "pld"] = "rdp"
    """How epsilon is computed: `rdp` by Renyi differential privacy, `pld` by privacy loss distributions, which is
    tighter and slower. Both are Google's dp-accounting."""

    secure_aggregation: bool = False
    """Whether the server learns only the sum of the clients' updates, and no single one (SecAgg+; Bell et al., "Secure
    Single-Server Aggregation with (Poly)Logarithmic Overhead", CCS 2020). Needs a strategy that uses only the mean."""
    assumed_dropped: Annotated[float, Field(ge=0, lt=0.5)] = 0.2
    """For secure aggregation: the largest share of a round's clients (rounded down) that may fail in it; if more do,
    the round fails."""
    assumed_corrupt: Annotated[float, Field(ge=0, lt=0.5)] = 0.1
    """For secure aggregation: the largest share of a round's clients (rounded down) that may work together with the
    server to learn another client's update."""
    largest_change: Annotated[float, Field(gt=0)] = 10.0
    """For secure aggregation: the largest change of a number of the model by a client in a round; a larger one is cut to
    it. The sum is exact to about this number divided by 2^31 for each client."""

    def check(self) -> None:
        """Raise ``ValueError`` for keys that do not fit each other."""
        self._check_secure()
        if self.mode == "none":
            given = [name for name in self._given() if name not in _SECURE]
            if given:
                raise ValueError(
                    f"privacy.{kebab(given[0])} is {getattr(self, given[0])!r}, but privacy.mode is 'none'; set it to "
                    f"'central', 'local' or 'example'"
                )
            return
        if (self.noise_multiplier > 0) == (self.epsilon > 0):
            both = self.epsilon > 0
            raise ValueError(
                f"privacy.noise-multiplier is {self.noise_multiplier:g} and privacy.epsilon is "
                f"{self.epsilon:g}; set {'only one of them' if both else 'one of them'}"
            )
        if self.clipping == "adaptive" and self.mode != "central":
            raise ValueError(
                f"privacy.clipping is 'adaptive', which privacy.mode = {self.mode!r} does not have; "
                f"set 'fixed', or the mode 'central'"
            )
        unused = [name for name in self._given() if name in _ADAPTIVE]
        if unused and self.clipping == "fixed":
            raise ValueError(
                f"privacy.{kebab(unused[0])} is {getattr(self, unused[0])!r}, but privacy.clipping is 'fixed'; set it to "
                f"'adaptive'"
            )

    def _given(self) -> list[str]:
        """Names of the keys that are not at their defaults."""
        fields = type(self).model_fields
        return [name for name, field in fields.items() if getattr(self, name) != field.default]

    def _check_secure(self) -> None:
        """Refuse keys of secure aggregation without it, and what would show single clients' updates."""
        own = [name for name in self._given() if name in _SECURE]
        if own and not self.secure_aggregation:
            raise ValueError(
                f"privacy.{kebab(own[0])} is {getattr(self, own[0])!r}, but privacy.secure-aggregation is false; set it "
                f"to true"
            )
        if self.secure_aggregation and self.clipping == "adaptive":
            raise ValueError(
                "privacy.clipping is 'adaptive', which tells the server of each client whether its update was clipped; "
                "set 'fixed', or privacy.secure-aggregation to false"
            )
