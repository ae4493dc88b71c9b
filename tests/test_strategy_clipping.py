"""Clipping rows: the bound holds in exact arithmetic, whatever the rows hold."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fedquilt.privacy.clipping import clip_rows, row_norms

finite_rows = st.tuples(st.integers(0, 4), st.integers(0, 40)).flatmap(
    lambda shape: arrays(np.float32, shape, elements=st.floats(-(2.0**120), 2.0**120, width=32))
)


def exact_norms(rows_KP):
    return np.sqrt(np.square(rows_KP.astype(np.longdouble)).sum(axis=1))


@given(finite_rows, st.floats(1e-3, 1e3))
def test_no_row_is_longer_than_the_bound(rows_KP, bound):
    clipped_KP, _ = clip_rows(rows_KP, bound)
    assert (exact_norms(clipped_KP) <= bound).all()


@given(finite_rows, st.sampled_from([1e-30, 1e-20, 1e-13]), st.sampled_from([1e-30, 1e-20, 1e-10, 1.0]))
def test_no_row_is_longer_than_a_bound_whose_square_float32_does_not_hold(rows_KP, bound, scale):
    clipped_KP, _ = clip_rows((rows_KP * scale).astype(np.float32), bound)
    assert (exact_norms(clipped_KP) <= bound).all()


@given(finite_rows, st.floats(1e-3, 1e3))
def test_rows_well_inside_the_bound_keep_their_bits(rows_KP, bound):
    clipped_KP, _ = clip_rows(rows_KP, bound)
    inside_K = exact_norms(rows_KP) < bound * (1 - 1e-4)
    assert clipped_KP[inside_K].tobytes() == rows_KP[inside_K].tobytes()


@given(finite_rows, st.floats(1e-3, 1e3))
def test_clipping_twice_is_clipping_once(rows_KP, bound):
    once_KP, _ = clip_rows(rows_KP, bound)
    twice_KP, _ = clip_rows(once_KP, bound)
    assert twice_KP is once_KP


@pytest.mark.parametrize("p", [1, 10, 1023, 1024, 1025, 4108, 57_554])
def test_a_long_row_keeps_its_direction_and_gets_the_norm_of_the_bound(p):
    rows_KP = np.random.default_rng(0).standard_normal((3, p)).astype(np.float32) * 9 + 50
    clipped_KP, norms_K = clip_rows(rows_KP, 0.25)
    assert norms_K == pytest.approx(exact_norms(rows_KP).astype(float), rel=2**-17)
    assert exact_norms(clipped_KP).astype(float) == pytest.approx(0.25, rel=3e-5)
    np.testing.assert_allclose(clipped_KP, rows_KP * (0.25 / norms_K)[:, None], rtol=1e-4)


def test_an_infinite_bound_changes_nothing():
    rows_KP = np.array([[3e20, 4e20], [1, 2]], np.float32)
    clipped_KP, norms_K = clip_rows(rows_KP, np.inf)
    assert clipped_KP is rows_KP
    assert norms_K == pytest.approx([5e20, 5**0.5])


def test_rows_of_zeros_stay_zeros():
    clipped_KP, norms_K = clip_rows(np.zeros((2, 5), np.float32), 0.5)
    assert not clipped_KP.any()
    assert not norms_K.any()


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("bound", [0.5, np.inf])
def test_a_row_that_is_not_finite_becomes_zeros_and_its_norm_tells(poison, bound):
    rows_KP = np.array([[0.1, 0.2], [poison, 0.2], [3, 4]], np.float32)
    clipped_KP, norms_K = clip_rows(rows_KP, bound)
    assert np.isfinite(norms_K).tolist() == [True, False, True]
    assert clipped_KP[1].tolist() == [0, 0]
    assert clipped_KP[0].tobytes() == rows_KP[0].tobytes()


def test_a_norm_depends_on_its_row_only():
    rows_KP = np.random.default_rng(1).standard_normal((7, 3000)).astype(np.float32)
    alone = np.concatenate([row_norms(rows_KP[k : k + 1].copy()) for k in range(7)])
    assert alone.tobytes() == row_norms(rows_KP).tobytes()


def test_in_place_overwrites_the_rows_and_otherwise_not():
    rows_KP = np.full((2, 3), 9, np.float32)
    kept_KP = rows_KP.copy()
    assert clip_rows(rows_KP, 1)[0] is not rows_KP
    assert (rows_KP == kept_KP).all()
    assert clip_rows(rows_KP, 1, in_place=True)[0] is rows_KP
    assert (rows_KP < 1).all()
