"""Random numbers of a step of many clients: each client draws its own, as if it were alone.

A client's draws are recorded once, from its step alone. Each client then makes the same draws from
a generator of its own, so that they depend on neither the clients beside it nor on threads, and
equal those that the step alone makes from the global generator with the same seed.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from flsimulation.training.stacked.compiler.step import NotStackable

aten = torch.ops.aten

OTHERWISE = "draws random numbers in another way for many clients at once"
_FILLS = {
    "rand": ("uniform_", (0.0, 1.0)),
    "rand_like": ("uniform_", (0.0, 1.0)),
    "randn": ("normal_", (0.0, 1.0)),
    "randn_like": ("normal_", (0.0, 1.0)),
}  # what these fill their result with
_SAME = {
    *("bernoulli", "uniform", "exponential", "cauchy", "geometric", "log_normal", "random"),
    *("normal", "normal_functional"),
}  # with `_` appended they fill a tensor in place, with the same arguments after it
_NORMALS = (aten.normal.Tensor_float, aten.normal.float_Tensor, aten.normal.Tensor_Tensor)


class Draw(NamedTuple):
    """One call that draws, of one client."""

    fill: str
    """Method that fills a tensor in place, or ``randperm``."""
    args: tuple[Any, ...]
    """Of the method."""
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    """In the order of which the numbers are drawn."""
    dtype: torch.dtype
    device: torch.device

    def into(self, row: Tensor, generator: torch.Generator) -> None:
        """Draw from the generator into a contiguous tensor of this shape."""
        if self.fill == "randperm":
            row.copy_(torch.randperm(*self.args, generator=generator, device=row.device))
        elif row.stride() == self.stride:
            getattr(row, self.fill)(*self.args, generator=generator)
        else:
            own = torch.empty_strided(self.shape, self.stride, dtype=row.dtype, device=row.device)
            row.copy_(getattr(own, self.fill)(*self.args, generator=generator))


def drawn(
    draws: Sequence[Draw], generators: Sequence[torch.Generator], device: torch.device
) -> list[Tensor]:
    """The draws of several clients' next step, [clients, ...] each.

    Parameters
    ----------
    draws : sequence of Draw
        Of a step.
    generators : sequence of Generator
        The clients', on the device.
    device : device
        Where the results shall be.
    """
    clients = len(generators)
    found = [torch.empty(clients, *d.shape, dtype=d.dtype, device=device) for d in draws]
    draw_into(draws, generators, found)
    return found


def draw_into(
    draws: Sequence[Draw], generators: Sequence[torch.Generator], found: Sequence[Tensor]
) -> None:
    """What `drawn` returns, into tensors that are there."""
    for place, generator in enumerate(generators):
        for draw, tensor in zip(draws, found, strict=True):
            draw.into(tensor[place], generator)


def only_drew(draws: Sequence[Draw], seed: int, device: torch.device) -> bool:
    """Whether the global generator is where these draws of one client lead it from this seed.

    It is not where a step seeds it, or puts back a state of it: its numbers are then not the next ones.
    On a GPU only the seeds are compared.
    """
    if device.type != "cpu":
        return torch.initial_seed() == torch.cuda.initial_seed() == seed
    own = torch.Generator().manual_seed(seed)
    drawn(draws, [own], device)
    return torch.equal(own.get_state(), torch.random.get_rng_state())


def is_draw(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether an ATen call draws random numbers."""
    tags = getattr(func, "tags", ())
    return torch.Tag.nondeterministic_seeded in tags and not _drops_nothing(func, args, kwargs)


class Recording(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the draws of one client's step."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.draws: list[Draw] = []

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Make a call. Raises `NotStackable` for draws that clients cannot make apart from a step."""
        result = func(*args, **(kwargs or {}))
        if is_draw(func, args, kwargs or {}):
            self.draws.append(_recorded(func, args, kwargs or {}, result))
        return result


def serving(numbers: Sequence[Tensor]) -> contextlib.AbstractContextManager[object]:
    """Let a step that draws get these numbers, one for each draw; without any it draws itself."""
    return Served(numbers) if numbers else contextlib.nullcontext()


class Served(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Returns numbers that were drawn before, in their order, wherever a step draws.

    Parameters
    ----------
    numbers : sequence of Tensor
        One for each draw of the step, as many as it draws.
    """

    def __init__(self, numbers: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._numbers: Iterator[Tensor] = iter(numbers)

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Make a call, or return its numbers."""
        given = kwargs or {}
        if not is_draw(func, args, given):
            return func(*args, **given)
        numbers = next(self._numbers, None)
        if numbers is None or numbers.numel() != math.prod(size := _size(args)):
            raise NotStackable(OTHERWISE)
        if func._schema.is_mutable:  # type: ignore[attr-defined]
            return args[0].copy_(numbers.view(size))
        return _made_of(numbers.view(size), func, args)


def _made_of(numbers: Tensor, func: Any, args: Sequence[Any]) -> Any:
    """What a call returns that drew these numbers."""
    if func is aten.native_dropout.default:
        return args[0] * numbers * (1 / (1 - args[1]) if args[1] < 1 else 0.0), numbers
    if func is aten.bernoulli.default:
        return torch.lt(numbers, args[0]).to(numbers.dtype)
    if func in _NORMALS:
        return torch.add(args[0], torch.mul(args[1], numbers))
    return numbers.clone()


def _recorded(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> Draw:
    if kwargs.get("generator") is not None:
        raise NotStackable("draws from a random generator of its own")
    fill, own = _fill(func, args)
    if func is aten.native_dropout.default:
        result = result[1]  # its mask
    if any(isinstance(arg, Tensor) for arg in own) or not isinstance(result, Tensor):
        raise NotStackable(f"draws random numbers that depend on others ({func})")
    return Draw(fill, own, tuple(result.shape), result.stride(), result.dtype, result.device)


def _fill(func: Any, args: Sequence[Any]) -> tuple[str, tuple[Any, ...]]:
    """What fills a tensor with such numbers, and its arguments."""
    name = str(func._schema.name).removeprefix("aten::").removesuffix("_")
    if name == "randperm":
        return name, (args[0],)
    if name in _FILLS:
        return _FILLS[name]
    if name in ("randint", "randint_like"):
        return "random_", (0, *(arg for arg in args if isinstance(arg, int)))[-2:]
    if func in _NORMALS:  # scaled and shifted afterwards
        return "normal_", (0.0, 1.0)
    if func is aten.normal.float_float:
        return "normal_", tuple(args[:2])
    if func is aten.native_dropout.default:  # dropout on a GPU
        return "bernoulli_", (1 - args[1],)
    if func is aten.bernoulli.default:  # compared with its argument afterwards
        return "uniform_", (0.0, 1.0)
    if name in _SAME:
        return f"{name.removesuffix('_functional')}_", tuple(args[1:])
    raise NotStackable(f"draws random numbers that depend on others ({func})")


def _size(args: Sequence[Any]) -> tuple[int, ...]:
    """Shape of what a call draws: that of its first tensor or the first sequence of its numbers."""
    for arg in args:
        if isinstance(arg, Tensor | list | tuple):
            return tuple(arg.shape if isinstance(arg, Tensor) else arg)
    return (int(args[0]),)  # randperm's


def _drops_nothing(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether a call has a probability of dropout, and it is 0."""
    for place, argument in enumerate(func._schema.arguments):
        if argument.name in ("dropout_p", "dropout"):  # of attention; of cuDNN's recurrent layers
            default = argument.default_value
            given = args[place] if len(args) > place else kwargs.get(argument.name, default)
            return bool(given == 0)
    return False
