"""The shared arithmetic: Gloo's order of summation, means, combinations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.numerics import combination, reduce, ring_sum, stepped


def sum_chunk_by_chunk(tensors: list[torch.Tensor]) -> torch.Tensor:
    """Sum as a ring does, chunk by chunk: x[c-2] + x[c-1], then x[c-3] + that, and so on."""
    n, d = len(tensors), tensors[0].numel()
    size = tensors[0].element_size()
    segments = max(math.ceil(d * size / 2**20), 2 * n)
    segments = math.ceil(segments / n) * n
    per_segment = math.ceil(math.ceil(d * size / segments) / size)
    per_chunk = per_segment * (segments // n)
    result = torch.empty_like(tensors[0])
    for chunk in range(n):
        part = slice(min(chunk * per_chunk, d), min((chunk + 1) * per_chunk, d))
        total = tensors[(chunk - 2) % n][part] + tensors[(chunk - 1) % n][part]
        for k in range(3, n + 1):
            total = tensors[(chunk - k) % n][part] + total
        result[part] = total
    return result


@settings(max_examples=60, deadline=None)
@given(
    st.integers(2, 9),
    st.integers(1, 400),
    st.sampled_from([torch.float32, torch.float64]),
    st.integers(0, 99),
)
def test_order_of_summation(workers: int, elements: int, dtype: torch.dtype, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    tensors = [torch.randn(elements, generator=random, dtype=dtype) for _ in range(workers)]
    assert torch.equal(ring_sum(tensors), sum_chunk_by_chunk(tensors))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("elements", [1, 2, 3, 1000])
def test_order_of_summation_of_many_workers(elements: int, dtype: torch.dtype) -> None:
    """So many that a sum that takes a column pairwise would show it."""
    random = torch.Generator().manual_seed(2)
    for workers in (8, 16, 33, 64):
        tensors = [torch.randn(elements, generator=random).to(dtype) for _ in range(workers)]
        assert torch.equal(ring_sum(tensors), sum_chunk_by_chunk(tensors))


def test_order_above_gloos_segments() -> None:
    """Two workers and more than 2n MiB: the segments are 1 MiB then."""
    random = torch.Generator().manual_seed(1)
    tensors = [torch.randn(1_500_001, generator=random) for _ in range(3)]
    assert torch.equal(ring_sum(tensors), sum_chunk_by_chunk(tensors))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 16), st.integers(0, 99))
def test_the_uniform_mean_is_the_mathematical_mean(workers: int, seed: int) -> None:
    values = np.random.default_rng(seed).normal(size=(workers, 50)).astype(np.float32)
    mean = reduce([torch.from_numpy(row) for row in values], "mean", None)
    exact = values.astype(np.float64).mean(0)
    bound = workers * np.finfo(np.float32).eps * np.abs(values).mean(0)
    assert np.all(np.abs(mean.numpy() - exact) <= bound)


def test_reductions() -> None:
    x, y = torch.tensor([1.0, -2.0, 3.0]), torch.tensor([0.5, 4.0, -1.0])
    assert reduce([x, y], "sum", None).tolist() == [1.5, 2.0, 2.0]
    assert reduce([x, y], "mean", None).tolist() == [0.75, 1.0, 1.0]
    assert reduce([x, y], "mean", (0.25, 0.75)).tolist() == [0.625, 2.5, 0.0]
    assert reduce([x, y], "max", None).tolist() == [1.0, 4.0, 3.0]
    assert x.tolist() == [1.0, -2.0, 3.0]


@pytest.mark.parametrize("op", ["sum", "mean", "max"])
def test_one_workers_reduction_is_a_fresh_copy(op: str) -> None:
    x = torch.tensor([1.0, 2.0])
    result = reduce([x], op, None)  # type: ignore[arg-type]
    assert torch.equal(result, x)
    assert result.data_ptr() != x.data_ptr()


def test_combination_sums_in_the_order_written() -> None:
    big, small = torch.tensor([1e8]), torch.tensor([1.0])
    assert combination([(1, big), (1, small), (-1, big)]).tolist() == [0.0]
    assert combination([(1, big), (-1, big), (1, small)]).tolist() == [1.0]
    assert (big.tolist(), small.tolist()) == ([1e8], [1.0])


def test_steps_by_whole_gradient_and_by_buckets_agree() -> None:
    x, g = torch.arange(5.0), torch.ones(5)
    whole = stepped(x, g, 0.5, [(3, 5), (0, 3)])
    parts = stepped(x, [g[3:5], g[0:3]], 0.5, [(3, 5), (0, 3)])
    assert whole.tolist() == parts.tolist() == [-0.5, 0.5, 1.5, 2.5, 3.5]
    assert x.tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 200), st.integers(1, 200), st.sampled_from([torch.float32, torch.float64]))
def test_a_step_by_buckets_has_the_bits_of_one_bucket_after_the_other(
    first: int, second: int, dtype: torch.dtype
) -> None:
    random = torch.Generator().manual_seed(first + 1000 * second)
    x, g = torch.randn(2, first + second, generator=random, dtype=dtype)
    bounds = [(first, first + second), (first, first), (0, first)]
    expected = x.clone()
    for low, high in bounds:
        expected[low:high].sub_(g[low:high], alpha=0.3)
    assert torch.equal(stepped(x, [g[low:high] for low, high in bounds], 0.3, bounds), expected)
