"""How a client's training fails, in the same words whichever way it is trained."""

from __future__ import annotations

from flsimulation.errors import ClientError


def too_late() -> ClientError:
    """The round's deadline came first."""
    return ClientError("deadline", "it was not done before the round's deadline")


def no_step() -> ClientError:
    """No batch returned a loss."""
    return ClientError("error", "it made no optimizer step; training_step must return the loss")


def loss_not_finite(loss: float) -> ClientError:
    """The mean training loss is NaN or infinite."""
    return ClientError("diverged", f"its training loss is {loss}; lower the learning rate")


def weights_not_finite(name: str) -> ClientError:
    """A parameter or buffer holds a NaN or an infinity."""
    return ClientError("diverged", f"its weights {name} are not finite; lower the learning rate")
