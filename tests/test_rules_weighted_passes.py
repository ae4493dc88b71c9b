"""Passes that weigh every row by its distance to a point: Weiszfeld's steps and centered clipping's sum."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies.distances import squared_distances
from strategies.rows import clipped_sum, distances_to
from strategies.weiszfeld import weiszfeld

FEW_OR_MANY = st.one_of(st.integers(1, 9), st.sampled_from([127, 128, 129, 130, 131]))  # 128 is the most of few


def drawn(k: int, p: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(k, p, generator=torch.Generator().manual_seed(seed))


def plain_weiszfeld(rows: torch.Tensor, alphas: torch.Tensor, num_steps: int, smoothing: float) -> np.ndarray:
    """In float64, as the formula is written."""
    rows, point = rows.double(), torch.zeros(rows.shape[1], dtype=torch.float64)
    for _ in range(num_steps):
        weights = alphas.double() / (rows - point).norm(dim=1).clamp(min=smoothing)
        point = weights @ rows / weights.sum()
    return point.numpy()


@settings(deadline=None, max_examples=40)  # the first call compiles
@given(
    FEW_OR_MANY, st.sampled_from([1, 7, 300, 9000]), st.integers(1, 4), st.sampled_from([torch.float32, torch.float64])
)
def test_weiszfeld_steps_are_those_of_float64_for_few_and_for_many_users(k, p, num_steps, dtype):
    rows, alphas = drawn(k, p).to(dtype), drawn(k, 1).abs().flatten() + 0.1
    point, weights = weiszfeld(rows, alphas, num_steps, 0.1)
    assert point.dtype == dtype
    assert point.numpy() == pytest.approx(plain_weiszfeld(rows, alphas, num_steps, 0.1), abs=3e-6)
    assert (weights @ rows.double()).numpy() == pytest.approx(point.numpy(), abs=3e-6)


@pytest.mark.parametrize("k", [100, 200])
def test_weiszfeld_steps_keep_the_digits_of_rows_that_share_an_offset(k):
    rows, alphas = drawn(k, 500) + 10_000, torch.full((k,), 1 / k)
    point = weiszfeld(rows, alphas, 4, 1e-6)[0]
    assert point.numpy() == pytest.approx(plain_weiszfeld(rows, alphas, 4, 1e-6), abs=2e-2)  # float32 there: 1e-3


@pytest.mark.parametrize("k", [100, 200])
def test_threads_do_not_move_the_geometric_median(monkeypatch, k):
    rows, alphas = drawn(k, 40_000), torch.full((k,), 1 / k)
    alone = weiszfeld(rows, alphas, 3, 0.1)[0]
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    first, again = weiszfeld(rows, alphas, 3, 0.1)[0], weiszfeld(rows, alphas, 3, 0.1)[0]
    assert torch.equal(first, again)
    assert first.numpy() == pytest.approx(alone.numpy(), abs=1e-6)


def test_of_updates_without_coordinates_the_geometric_median_has_none():
    assert weiszfeld(torch.empty(3, 0), torch.ones(3), 3, 0.1)[0].shape == (0,)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 9), st.sampled_from([1, 7, 300, 9000]), st.booleans())
def test_the_clipped_sum_is_the_formulas_for_odd_and_for_even_numbers_of_rows(k, p, from_origin):
    rows, alphas, point = drawn(k, p), torch.full((k,), 1 / k), drawn(1, p, seed=1)[0]
    far = rows.double() if from_origin else rows.double() - point
    radius = float(far.norm(dim=1).median()) * 1.01  # some are within
    weights = alphas.double() * (radius / far.norm(dim=1)).clamp(max=1)
    total, given_weights = clipped_sum(rows, alphas, point[:0] if from_origin else point, radius)
    assert given_weights.numpy() == pytest.approx(weights.numpy(), rel=1e-5)
    assert total.numpy() == pytest.approx((weights @ rows.double()).numpy(), abs=3e-6)


@pytest.mark.parametrize("p", [1, 1023, 1025, 5000])
def test_distances_to_a_point_are_those_of_float64(p):
    rows, point = drawn(5, p), drawn(1, p, seed=1)[0]
    assert distances_to(rows, point).numpy() == pytest.approx((rows - point).double().norm(dim=1).numpy(), rel=1e-6)
    assert distances_to(rows, point[:0]).numpy() == pytest.approx(rows.double().norm(dim=1).numpy(), rel=1e-6)


@pytest.mark.parametrize("k", [51, 52, 53, 104, 105, 450])
def test_squared_distances_do_not_depend_on_how_many_bands_the_matrix_has(k):
    rows = drawn(k, 3000).double()
    assert squared_distances(rows).numpy() == pytest.approx(torch.cdist(rows, rows).square().numpy(), abs=1e-6)
