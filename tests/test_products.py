"""Norms and sums of single examples' gradients by products, against autograd one example at a time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from flsimulation.training.private.gradients import shares
from flsimulation.training.private.layers import Layer, Products

IMAGE = (1, 3, 9, 11)
LAYERS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "dense": (nn.Linear(7, 5), (1, 7)),
    "without a bias": (nn.Linear(7, 5, bias=False), (1, 7)),
    "a short sequence": (nn.Linear(7, 5), (1, 3, 7)),  # 2 * 3 * 3 products, of 35 numbers
    "a long sequence": (nn.Linear(7, 5), (1, 6, 7)),  # 2 * 6 * 6 products
    "convolution": (nn.Conv2d(3, 4, 3), IMAGE),
    "few places": (nn.Conv2d(3, 40, 3, stride=4), IMAGE),  # 2 * 6 * 6 products, of 1,080 numbers
    "uneven": (nn.Conv2d(3, 4, (2, 3), (2, 1), (1, 2), (1, 2), bias=False), IMAGE),
    "valid": (nn.Conv2d(3, 4, 3, padding="valid"), IMAGE),
    "table": (nn.Embedding(6, 4, padding_idx=2), (1, 8)),
}
CLIENTS, EXAMPLES = 2, 3


@pytest.mark.parametrize("name", LAYERS)
def test_products_are_the_gradients(name: str) -> None:
    torch.manual_seed(1)
    module, shape = LAYERS[name]
    own = tuple(n for n, _ in module.named_parameters())
    whole = (CLIENTS, EXAMPLES, *shape)
    x = torch.randint(0, 6, whole) if name == "table" else torch.randn(whole)
    outputs = [[module(example) for example in client] for client in x]
    factors = [[torch.randn_like(out) for out in client] for client in outputs]
    single = [
        [
            torch.autograd.grad((out * factor).sum(), [*module.parameters()])
            for out, factor in zip(*parts, strict=True)
        ]
        for parts in zip(outputs, factors, strict=True)
    ]
    layer = Layer("layer", module, own, tuple(outputs[0][0].shape))
    given: Tensor = torch.stack([torch.stack(client) for client in factors])
    products = Products(layer, x, given)
    squares = [sum(float(g.square().sum()) for g in one) for client in single for one in client]
    assert products.squares().tolist() == pytest.approx(squares, rel=1e-4)
    weights = torch.tensor([[0.5, 1.0, 0.0], [0.25, 0.0, 2.0]])
    for place, found in enumerate(products.sums(weights)):
        for client in range(CLIENTS):
            wanted = sum(
                w * one[place] for w, one in zip(weights[client], single[client], strict=True)
            )
            assert torch.allclose(found[client], wanted, atol=1e-4)  # type: ignore[arg-type]


def test_what_is_not_finite_counts_as_zero_and_rounding_below_zero_as_nothing() -> None:
    squares = torch.tensor([4.0, 0.25, -1e-9, float("inf"), float("nan"), 4.0])
    kept = torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0, 0.0])
    found = shares(squares, 1.0, kept).tolist()
    assert found == pytest.approx([0.5, 1.0, 1.0, 0.0, 0.0, 0.0], abs=1e-6)
