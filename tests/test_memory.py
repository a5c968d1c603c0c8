"""Memory that is too small: what is tried again with fewer clients, and what is said."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional

from flsimulation.errors import ModelError, RunError
from flsimulation.experiment.spec import Train
from flsimulation.host.warned import Warnings, collected
from flsimulation.training import Batches, Job, State, Terms, Trained, engine_for
from flsimulation.training.direct import DirectEvaluator
from flsimulation.training.memory import is_out_of_memory
from flsimulation.training.stacked.evaluation import StackedEvaluator
from flsimulation.training.stacked.trainer import StackedTrainer

pytestmark = pytest.mark.seconds

CLIENTS, EACH = 16, 6
X = torch.tensor(np.random.default_rng(0).normal(size=(CLIENTS * EACH, 6)), dtype=torch.float32)
Y = torch.tensor(np.arange(len(X)) % 3)
CUDA = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 GiB.")
CPU = RuntimeError(
    "[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: can't allocate memory"
)
NUMPY = MemoryError("Unable to allocate 3 GiB")
INSIDE = RuntimeError(
    "The following operation failed in the TorchScript interpreter.\n" + str(CUDA)
)


def clients_in(x: Tensor) -> int:
    """Clients that take the step with this input: 1 without vmap."""
    if not torch._C._functorch.is_batchedtensor(x):
        return 1
    whole = torch._C._functorch.get_unwrapped(x)
    return int(whole.shape[torch._C._functorch.maybe_get_bdim(x)])


class Limited(pl.LightningModule):
    """Stands for a memory that holds so many clients at a time."""

    def __init__(self, most: int = CLIENTS, error: Exception = CUDA) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)
        self.most, self.error = most, (type(error), str(error))

    def loss(self, batch: Any) -> Tensor:
        if clients_in(batch[0]) > self.most:
            raise self.error[0](self.error[1])
        return functional.cross_entropy(self.layer(batch[0]), batch[1])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.loss(batch)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.loss(batch))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.5)


@pytest.fixture(autouse=True)
def said() -> Iterator[Warnings]:
    """What is said; with one thread, so that few clients are one wave."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with collected() as found:
        yield found
    torch.set_num_threads(before)


def parts(*, shuffled: bool = True) -> list[Batches]:
    rows = np.arange(len(X)).reshape(CLIENTS, EACH)
    streams = [functools.partial(np.random.default_rng, place) for place in range(CLIENTS)]
    return [
        Batches(X, Y, own, 4 if shuffled else 1000, stream if shuffled else None)
        for own, stream in zip(rows, streams, strict=True)
    ]


def limited(most: int, error: Exception = CUDA) -> Limited:
    torch.manual_seed(0)
    return Limited(most, error)


def trained(trainer: StackedTrainer, module: Limited) -> tuple[list[tuple[int, ...]], list[State]]:
    """The clients of each wave, and each client's model."""
    waves = list(trainer.fit(module.state_dict(), parts()))
    states = {client: wave.state(i) for wave in waves for i, client in enumerate(wave.clients)}
    return [wave.clients for wave in waves], [states[client] for client in range(CLIENTS)]


def on_cpu(module: Limited) -> StackedTrainer:
    return StackedTrainer(module, Train(batch_size=4, epochs=2, device="cpu"), X, Y)


@pytest.mark.parametrize(
    "error", [CUDA, CPU, NUMPY, INSIDE], ids=["cuda", "cpu", "numpy", "inside"]
)
def test_a_wave_that_memory_does_not_hold_is_trained_in_halves_from_its_start(
    error: Exception, said: Warnings
) -> None:
    whole, few = limited(CLIENTS), limited(5, error)
    waves, models = trained(on_cpu(whole), whole)
    assert [len(wave) for wave in waves] == [CLIENTS]
    trainer = on_cpu(few)
    waves, halved = trained(trainer, few)
    assert [len(wave) for wave in waves] == [4, 4, 4, 4]
    again, _ = trained(trainer, few)
    assert again == waves
    assert [*itertools.chain(*waves)] == list(range(CLIENTS))
    for own, other in zip(halved, models, strict=True):
        for name, value in own.items():
            torch.testing.assert_close(value, other[name])
    assert said.lines == [
        "memory does not hold 16 clients that train at once; they train in smaller groups, which takes "
        "longer (lower train.batch-size for larger ones)"
    ]


def test_later_rounds_do_not_try_again_what_failed() -> None:
    module = limited(5)
    trainer = on_cpu(module)
    waves, _ = trained(trainer, module)
    trainer._stack.programs._eager.module.most = CLIENTS  # type: ignore[assignment]
    assert trained(trainer, module)[0] == waves


def test_other_errors_of_a_wave_are_not_tried_again() -> None:
    tried: list[int] = []
    module = limited(CLIENTS)
    trainer = on_cpu(module)

    def wrong(*_: Any) -> Any:
        tried.append(1)
        raise ValueError("no memory's fault")

    trainer._stack.programs.program = wrong  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="no memory's fault"):
        list(trainer.fit(module.state_dict(), parts()))
    assert len(tried) == 1


def engine(module: Limited, requested: str) -> Any:
    return engine_for(module, Train(batch_size=4, engine=requested, device="cpu"), X, Y, CLIENTS)  # type: ignore[arg-type]


@pytest.mark.parametrize("most", [0, 1, 2])
def test_a_step_that_is_out_of_memory_is_not_said_to_be_untraceable(most: int) -> None:
    reason = (
        r"there is not enough memory to prepare its step for many clients at once "
        r"\(OutOfMemoryError: CUDA out of memory. Tried to allocate 3 GiB. \(test_memory.py:\d+\)\); "
        r"lower train.batch-size"
    )
    with pytest.raises(ModelError, match=reason):
        engine(limited(most), "stacked")
    fallen_back = engine(limited(most), "auto")
    assert fallen_back.name == "direct"
    assert str(fallen_back.why_not).startswith("there is not enough memory to prepare its step")


def test_the_run_ends_with_the_remedy_where_not_even_one_client_fits() -> None:
    module = limited(CLIENTS)
    stacked = engine(module, "stacked")
    stacked._trainer._stack.programs._eager.module.most = 0
    jobs = [Job(place, batches, lambda: 0) for place, batches in enumerate(parts())]
    with pytest.raises(
        Exception, match="to train a single client stacked .*; lower train.batch-size"
    ):
        list(stacked.fit(module.state_dict(), jobs, Terms()))
    chosen = engine(limited(CLIENTS), "auto")
    chosen._trainer._stack.programs._eager.module.most = 0
    fitted = list(chosen.fit(module.state_dict(), jobs, Terms()))
    assert [
        p for own in fitted for p, done in own.results.items() if isinstance(done, Trained)
    ] == [*range(CLIENTS)]
    assert chosen.name == "direct"
    assert chosen.why_not.startswith("there is not enough memory to train it stacked (OutOfMemory")


def test_clients_that_memory_does_not_hold_are_evaluated_one_by_one_and_then_fewer_at_once() -> (
    None
):
    module = limited(CLIENTS)
    direct = DirectEvaluator(module)
    together, held = StackedEvaluator(direct, X, Y), parts(shuffled=False)
    state, by_one = module.state_dict(), list[int]()

    def alone(place: int) -> dict[str, float]:
        by_one.append(place)
        return direct.evaluate(state, held[place])

    def evaluated(most: int) -> list[dict[str, float]]:
        direct._module.most = direct._used.most = most  # type: ignore[assignment]
        by_one.clear()
        found = dict[int, Any]()
        for scored in together.evaluate(dict(state), held, alone):
            found |= scored
        return [found[place] for place in range(CLIENTS)]

    expected = evaluated(CLIENTS)
    assert by_one == []
    for alone_then in (16, 8, 0):  # passes of 16, of 8, of 4
        assert evaluated(6) == [pytest.approx(own) for own in expected]
        assert len(by_one) == alone_then


def test_what_counts_as_too_little_memory() -> None:
    assert all(map(is_out_of_memory, (CUDA, CPU, NUMPY, INSIDE, MemoryError())))
    assert is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"))
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(ValueError("out of memory"))  # a module's own word, no allocator's


class ByPairs(Limited):
    """Needs a value of its batch where that has two examples, which no size tried at the start has."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        return loss * (2.0 if len(batch[0]) == 2 and loss.item() > 0 else 1.0)


def test_clients_train_one_by_one_from_the_wave_on_that_is_not_stackable() -> None:
    torch.manual_seed(0)
    module = ByPairs(CLIENTS, CUDA)
    whole = [Job(place, batches, lambda: 0) for place, batches in enumerate(parts())]
    jobs = [  # whole batches only, before one with a rest
        *(
            job._replace(batches=Batches(X, Y, np.arange(8) + place, 4))
            for place, job in enumerate(whole[:6])
        ),
        *whole[6:9],
    ]
    stacked, direct = engine(module, "auto"), engine(module, "direct")
    assert (stacked.name, stacked.why_not) == ("stacked", None)
    for at_once in (jobs[:6], jobs, jobs[6:]):
        expected, found = (
            {
                p: t
                for fitted in own.fit(module.state_dict(), at_once, Terms())
                for p, t in fitted.results.items()
            }
            for own in (direct, stacked)
        )
        assert [*found] == [job.partition for job in at_once]
        for partition, own in expected.items():
            torch.testing.assert_close(found[partition].state, own.state, rtol=1e-5, atol=1e-6)
        assert stacked.name == ("stacked" if at_once == jobs[:6] else "direct")
    assert str(stacked.why_not).startswith("training_step depends on a tensor's value")
    requested = engine(module, "stacked")
    with pytest.raises(
        RunError, match="cannot be trained together after all: training_step depends"
    ):
        list(requested.fit(module.state_dict(), whole, Terms()))
