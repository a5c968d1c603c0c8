"""Convolutions with a group for each client as batched products: the same numbers as ATen's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flsimulation.experiment.spec import Train
from flsimulation.models import CNN
from flsimulation.training import Batches
from flsimulation.training.lightning import LocalTrainer
from flsimulation.training.stacked.compiler import trace as trace_module
from flsimulation.training.stacked.compiler.convolution import replacements
from flsimulation.training.stacked.compiler.program import StepPrograms
from flsimulation.training.stacked.trainer import StackedTrainer

aten = torch.ops.aten
ON_GPU = replacements(torch.device("cuda"))


@st.composite
def convolutions(draw: Any) -> dict[str, Any]:
    def pair(least: int, most: int) -> list[int]:
        return [draw(st.integers(least, most)), draw(st.integers(least, most))]

    kernel, dilation = pair(1, 3), pair(1, 2)
    least = [reach * (extent - 1) + 1 for reach, extent in zip(dilation, kernel)]
    return {
        "batch": draw(st.integers(1, 4)),
        "groups": draw(st.integers(2, 4)),
        "channels": [draw(st.integers(1, 3)), draw(st.integers(1, 3))],
        "size": [draw(st.integers(size, size + 4)) for size in least],
        "kernel": kernel,
        "stride": pair(1, 3),
        "padding": pair(0, 2),
        "dilation": dilation,
        "seed": draw(st.integers(0, 100)),
    }


@settings(max_examples=200, deadline=None)
@given(convolutions())
def test_products_equal_the_convolution_and_its_gradients(how: dict[str, Any]) -> None:
    random = torch.Generator().manual_seed(how["seed"])
    groups, (inward, outward) = how["groups"], how["channels"]

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random, dtype=torch.float64)

    x = normal(how["batch"], groups * inward, *how["size"])
    weight = normal(groups * outward, inward, *how["kernel"])
    rest = (how["stride"], how["padding"], how["dilation"], False, [0, 0], groups)
    expected = aten.convolution(x, weight, None, *rest)
    found = ON_GPU[aten.convolution.default](x, weight, None, *rest)
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)

    bias, sizes = normal(len(weight)), [len(weight)]
    expected = aten.convolution(x, weight, bias, *rest)
    found = ON_GPU[aten.convolution.default](x, weight, bias, *rest)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)

    gradient, wanted = normal(*expected.shape), [True, True, True]
    expected = aten.convolution_backward(gradient, x, weight, sizes, *rest, wanted)
    found = ON_GPU[aten.convolution_backward.default](gradient, x, weight, sizes, *rest, wanted)
    for one, other in zip(found, expected):
        assert one.shape == other.shape
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("shape", "transposed", "groups"),
    [
        ((2, 4, 6, 6), False, 1),
        ((2, 4, 6, 6), True, 2),
        ((2, 4, 6), False, 2),
        ((2, 4, 6, 6, 6), False, 2),
    ],
    ids=["no groups", "transposed", "one dimension", "three dimensions"],
)
def test_others_stay_convolutions(shape: tuple[int, ...], transposed: bool, groups: int) -> None:
    x, sides = torch.ones(shape), len(shape) - 2
    weight = torch.ones(4, 4 // groups, *[2] * sides)
    rest = ([1] * sides, [0] * sides, [1] * sides, transposed, [0] * sides, groups)
    assert ON_GPU[aten.convolution.default](x, weight, None, *rest) is NotImplemented
    assert (
        ON_GPU[aten.convolution_backward.default](
            aten.convolution(x, weight, None, *rest), x, weight, None, *rest, [True, True, False]
        )
        is NotImplemented
    )


def test_a_cpu_keeps_its_convolutions() -> None:
    assert replacements(torch.device("cpu")) == {}


@pytest.mark.seconds
def test_a_network_trains_by_products_as_it_does_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace_module, "replacements", lambda _: ON_GPU)
    torch.manual_seed(0)
    module = CNN(width=4, hidden=16, learning_rate=0.05).double()
    x, y = torch.rand(14, 1, 28, 28, dtype=torch.float64), torch.arange(14) % 10
    spec = Train(batch_size=3, device="cpu")
    trainer = StackedTrainer(module, spec, x, y)
    graph = StepPrograms(module, x, y)._graphs[0]
    called = {node.target for node in graph.nodes}
    assert {aten.im2col.default, aten.bmm.default} <= called
    assert not called & ON_GPU.keys()
    parts = [torch.arange(0, 4), torch.arange(4, 9), torch.arange(9, 14)]

    def batches() -> list[Batches]:
        return [Batches(x, y, part.numpy(), 3) for part in parts]

    state = module.state_dict()
    # before the waves, whose threads change the filters of warnings
    expected = [LocalTrainer(module, spec).fit(state, own, seed=0).state for own in batches()]
    seen = list[int]()
    for wave in trainer.fit(state, batches()):
        for place, client in enumerate(wave.clients):
            seen.append(client)
            for name, value in wave.state(place).items():
                assert not torch.equal(value, state[name])
                torch.testing.assert_close(value, expected[client][name], rtol=1e-10, atol=1e-12)
    assert sorted(seen) == [0, 1, 2]
