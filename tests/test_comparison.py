"""Two results of one step: what is taken for a rounding, by type, by array and by client."""

from __future__ import annotations

import pytest
import torch

from flsimulation.training.stacked.compiler.comparison import is_close

ALLOWED = {
    torch.float64: 1.42e-14,
    torch.float32: 7.63e-6,
    torch.float16: 1.56e-2,
    torch.bfloat16: 0.125,
}


@pytest.mark.parametrize("dtype", ALLOWED)
def test_each_type_allows_its_roundings(dtype: torch.dtype) -> None:
    one = torch.tensor([[3.0, 4.0]], dtype=torch.float64)  # of length 5

    def close(apart: float, scale: float = 0.0) -> bool:
        eps = torch.finfo(dtype).eps
        return is_close(one + torch.tensor([[0.0, apart]]), one, eps, scale)

    assert close(4.9 * ALLOWED[dtype])
    assert not close(5.2 * ALLOWED[dtype])
    eps = torch.finfo(dtype).eps
    assert close(5.2 * ALLOWED[dtype], scale=eps**-1 * ALLOWED[dtype])  # terms that cancelled


def test_a_number_of_a_coarser_type_is_as_coarse() -> None:
    one = torch.tensor([[1.0]])
    assert is_close(one + 5e-6, one, torch.finfo(torch.float64).eps, 0.0)
    assert not is_close(one.double() + 5e-6, one.double(), torch.finfo(torch.float64).eps, 0.0)


def test_no_client_hides_behind_another() -> None:
    one = torch.tensor([[1e6, 1e6], [1.0, 1.0]])
    assert not is_close(one * torch.tensor([[1.0], [1.001]]), one, 0.0, 0.0)


@pytest.mark.parametrize(
    ("one", "other", "close"),
    [
        (float("nan"), float("nan"), True),
        (float("inf"), float("inf"), True),
        (float("inf"), -float("inf"), False),
        (float("inf"), 1.0, False),
        (1.0, float("inf"), False),
        (float("nan"), 1.0, False),
        (1.0, float("nan"), False),
    ],
)
def test_what_is_not_finite_must_be_so_in_both(one: float, other: float, close: bool) -> None:
    pair = torch.tensor([[1.0, one]]), torch.tensor([[1.0, other]])
    assert is_close(*pair, 0.0, 1.0) is close
    assert is_close(pair[0] + 0.1, pair[1], 0.0, 1.0) is False  # the others still count


def test_a_gradient_that_is_missing_must_be_so_in_both() -> None:
    assert is_close(None, None, 0.0, 1.0)
    assert not is_close(None, torch.zeros(1, 1), 0.0, 1.0)
    assert not is_close(torch.zeros(1, 1), None, 0.0, 1.0)
