from __future__ import annotations

import pytest
import torch

from algorithms import Phantom, TimingOnly


def outline(phantom: Phantom) -> tuple[tuple[int, ...], int, int]:
    return phantom.shape, phantom.itemsize, phantom.nbytes


def test_operators_and_functions_keep_the_outline() -> None:
    x = Phantom((10,), 4)
    for result in (
        x + 1,
        2 * x,
        x - x,
        -x,
        x / 3,
        torch.sign(x),
        torch.add(x, x),
        torch.add(1.0, x),
        x.clone(),
    ):
        assert outline(result) == ((10,), 4, 40)


def test_slices_and_concatenations_have_their_own_size() -> None:
    x = Phantom((10,), 8)
    assert outline(x[2:5]) == ((3,), 8, 24)
    assert outline(torch.cat([x, x[:1]])) == ((11,), 8, 88)
    assert len(x) == x.numel() == 10


def test_what_is_not_known_is_refused_and_not_guessed() -> None:
    x = Phantom((10,), 4)
    with pytest.raises(TimingOnly, match=r"torch\.stack is not known in a timing-only run"):
        torch.stack([x, x])
    assert x.dtype == torch.float32
    assert outline(torch.lerp(input=x, end=x, weight=0.5)) == ((10,), 4, 40)


@pytest.mark.parametrize(
    "look", [bool, float, int, lambda x: x > 0, lambda x: x.item(), lambda x: x == x, lambda x: x.sum()]
)
def test_values_are_refused(look: object) -> None:
    with pytest.raises(TimingOnly, match="depends on the value of a tensor"):
        look(Phantom((1,)))  # type: ignore[operator]
