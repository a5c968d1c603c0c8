"""What to change in a model or an experiment for a faster engine, for each kind of reason."""

from __future__ import annotations

import re

_NUMBERS = "tensors that training_step returns or logs need no number"
_REMEDIES: tuple[tuple[str, str], ...] = (
    (
        r"training steps in all are too few",
        "none needed: tracing the step takes about as long as the whole training, or longer; "
        "train.engine = 'stacked' traces it all the same",
    ),
    (
        r"requests the other$",
        "leave train.engine at 'auto', its default, for the fastest engine that is possible",
    ),
    (
        r"it is not faster for this model",
        "none needed: the faster one trains here; train.engine = 'stacked' requests the other",
    ),
    (
        r"train\.validate evaluates",
        "set train.validate = false, unless a scheduler or a callback needs the scores of each "
        "epoch; the clients' held-out parts are evaluated every round in any case",
    ),
    (r"a fused optimizer divides", "leave out fused=True, or set train.precision = 'bf16-mixed'"),
    (
        r"optimizes by itself",
        "leave automatic_optimization at True: return the loss from training_step, and set "
        "train.gradient-clip where the norm of the gradient is limited",
    ),
    (
        r"a configure_callbacks of its own",
        "remove configure_callbacks: freeze layers by requires_grad = False in __init__, and keep "
        "callbacks that only watch out of the federated run",
    ),
    (
        r"a configure_gradient_clipping of its own|clips in another way",
        "let it do no more than self.clip_gradients with numbers, or remove it and set "
        "train.gradient-clip to the largest norm",
    ),
    (
        r"a (log|log_dict) of its own",
        "rename the method, and call self.log from it",
    ),
    (
        r"^the module has a \w+ of its own",
        "remove this method: what it prepares can be made in __init__, what it does to a batch in "
        "training_step, and what it does to learning rates by a scheduler of configure_optimizers",
    ),
    (
        r"configure_optimizers needs a Trainer",
        "make the optimizer from self.parameters() and numbers; of self.trainer it may use "
        "estimated_stepping_batches, max_epochs and what docs/own-model.md lists",
    ),
    (
        r"does not work element by element",
        "use SGD, Adam, AdamW, RMSprop, Adagrad, Adadelta, Adamax, NAdam or RAdam of torch.optim",
    ),
    (r"the optimizer has hooks", "register no hooks on the optimizer"),
    (r"the optimizer has a zero_grad", "leave zero_grad as the optimizer's class has it"),
    (
        r"several optimizers or none",
        "return one optimizer; layers with other rates are parameter groups of it",
    ),
    (
        r"returns keys that need a Trainer|goes by a metric",
        "use a scheduler that goes by steps or epochs, for example StepLR or CosineAnnealingLR",
    ),
    (
        r"scheduler steps in a way of its own",
        "give the scheduler an interval of 'step' or 'epoch' and a frequency of 1 or more",
    ),
    (
        r"returns the same optimizer each time",
        "make a new optimizer in each call of configure_optimizers",
    ),
    (
        r"takes a dataloader_iter",
        "let training_step take (self, batch, batch_idx)",
    ),
    (r"has no training_step|returns no loss", "return the loss of the batch from training_step"),
    (
        r"uses (self\.(trainer\.)?\w+|batch_idx) otherwise than in sums",
        "in place of `if`, `min` and float() of such a number write torch.where or torch.clamp of "
        "torch.tensor(number); learning rates go by a scheduler of configure_optimizers, over rounds by "
        "train.learning-rate-decay",
    ),
    (
        r"(uses|sets) self\.(trainer|optimizers|lr_schedulers|manual_backward|toggle_optimizer)",
        "do without it in training_step: return the loss, and let configure_optimizers return "
        "optimizer and scheduler",
    ),
    (
        r"Python's or NumPy's random",
        "draw with torch.rand, torch.randn, torch.randint or torch.randperm in training_step, or "
        "draw in a transform of the data",
    ),
    (
        r"from a random generator of its own",
        "leave out generator=: each client's draws have a seed of their own",
    ),
    (
        r"draws random numbers that depend on others|in another way for many clients",
        "draw numbers that depend on no values, and use them: torch.rand_like(p) < p in place of a "
        "draw by p",
    ),
    (
        r"draws random numbers on another device",
        "draw on the device of the batch: torch.rand(..., device=x.device)",
    ),
    (
        r"logs '[^']*', a metric object",
        "log metric objects in validation_step only; in training_step log numbers",
    ),
    (
        r"logs '[^']*', which is no number|logs '[^']*' in a way|logs '[^']*' twice",
        "log each name once in a step, as one number, by self.log(name, value)",
    ),
    (
        r"logs something else for other|outside of its training_step|at its epoch's end",
        "log the same names in each training_step, and nowhere else during training",
    ),
    (
        r"writes in place|changes tensors of the module|changes the parameter",
        "write x = x * y in place of x *= y and x[i] = y, and leave parameters to the optimizer; "
        "what a step is to keep is a buffer (register_buffer in __init__)",
    ),
    (
        r"changes the module itself",
        "keep nothing in attributes during a step: what it is to keep is a tensor in a buffer "
        "(register_buffer in __init__), what is to be seen is logged",
    ),
    (
        r"is a SyncBatchNorm",
        "use BatchNorm1d, BatchNorm2d or BatchNorm3d: a client's statistics are its own; or GroupNorm, which has none",
    ),
    (
        r"vmap cannot take",
        "replace this call by others, or its layer by one of those that docs/own-model.md lists "
        "under 'Trained with many others'",
    ),
    (
        r"depends on a tensor's value|cannot be traced.*(data-dependent|[Cc]ontrol flow|dynamic shape|nonzero)",
        "in place of `if` and `while` on a tensor and of x[mask] write torch.where(condition, a, b); "
        f"leave out .item(), float(), int() and .tolist(): {_NUMBERS}. BatchNorm with "
        "momentum=None needs such a number: give it a momentum",
    ),
    (
        r"not enough memory to prepare",
        "lower train.batch-size, or train where there is more memory",
    ),
    (
        r"fails for a batch of",
        "correct this error, or choose train.batch-size so that no client has such a batch: the "
        "clients that have one fail in every engine",
    ),
    (
        r"something else for (other sizes of a batch|many clients at once)",
        "let no value and no shape that is computed in Python (len(x), x.shape) change what the step "
        "does; take means over the batch by torch",
    ),
    (
        r"returned (inputs|labels) of shape",
        "let the transform return one shape and type for all batches",
    ),
    (
        r"cannot be traced.*\bvmap\b",
        "PyTorch has no form of this call for many clients at once: another call, or a layer made of "
        "others, may have one",
    ),
    (
        r"cannot be traced|cannot be tried",
        "use PyTorch's calls on tensors only in training_step; the error names the line that does not",
    ),
)


def remedy_of(reason: str) -> str | None:
    """What to change so that the reason why an engine is not possible goes; None if not known.

    Parameters
    ----------
    reason : str
        Of one engine, as in the manifest.
    """
    return next((text for pattern, text in _REMEDIES if re.search(pattern, reason)), None)
