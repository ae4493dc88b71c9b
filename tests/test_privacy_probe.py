"""The sensitivity probe: passes what is bounded, finds every planted bug."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedquilt.errors import PrivacyError
from fedquilt.privacy.clipping import clip_rows
from fedquilt.privacy.events import GaussianRelease, Poisson
from fedquilt.privacy.mechanisms import noised_mean
from fedquilt.privacy.probe import probe, require_bounded
from fedquilt.privacy.randomness import Simulated

C = 0.5
ROWS = np.random.default_rng(0).normal(size=(6, 20)).astype(np.float32)


def finite(rows):
    return rows[np.isfinite(rows).all(axis=1)]


def honest(rows, weights):
    return clip_rows(rows, C)[0].sum(axis=0, dtype=np.float64)


def ours(rows, weights):
    """The mechanism itself, without noise: the released mean times the expected cohort."""
    event = GaussianRelease("r", 1, Poisson(0.1), 0.0, C, 10.0, len(rows), "c")
    return noised_mean(clip_rows(rows, C)[0], event, Simulated(0)) * 10.0


def clip_after_the_mean(rows, weights):
    mean = np.nan_to_num(rows, posinf=0, neginf=0).mean(axis=0, keepdims=True) if len(rows) else np.zeros((1, 20))
    return clip_rows(mean.astype(np.float32), C)[0][0] * 6


def clip_each_tensor(rows, weights):
    return sum(np.pad(clip_rows(rows[:, half], C)[0], ((0, 0), pad)).sum(axis=0)
               for half, pad in ((slice(0, 10), (0, 10)), (slice(10, 20), (10, 0))))  # fmt: skip


def clip_by_the_largest_coordinate(rows, weights):
    rows = finite(rows)
    return (rows * np.minimum(1, C / np.maximum(np.abs(rows).max(axis=1, keepdims=True), 1e-9))).sum(axis=0)


def clip_by_the_mean_norm(rows, weights):
    rows = finite(rows)
    norms = np.linalg.norm(rows.astype(np.float64), axis=1)
    return (rows * min(1.0, C / max(norms.mean(), 1e-9))).sum(axis=0) if len(rows) else np.zeros(20)


def weigh_by_claims(rows, weights):
    return (clip_rows(rows, C)[0] * weights[:, None]).sum(axis=0)


def divide_by_who_came(rows, weights):
    return honest(rows, weights) * 6 / max(len(rows), 1)


def no_clip(rows, weights):
    return np.nan_to_num(rows, posinf=0, neginf=0).sum(axis=0)


def let_nan_through(rows, weights):
    norms = np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    return (rows * np.minimum(1, C / np.maximum(norms, 1e-9))).sum(axis=0)


def median(rows, weights):
    return np.median(clip_rows(rows, C)[0], axis=0) * 6 if len(rows) else np.zeros(20)


def clip_to_twice_the_norm(rows, weights):
    return clip_rows(rows, 2 * C)[0].sum(axis=0)


PLANTED = (
    clip_after_the_mean, clip_each_tensor, clip_by_the_largest_coordinate, clip_by_the_mean_norm, weigh_by_claims,
    divide_by_who_came, no_clip, let_nan_through, median, clip_to_twice_the_norm,
)  # fmt: skip


@pytest.mark.parametrize("bug", PLANTED, ids=lambda bug: bug.__name__)
def test_every_planted_bug_is_found(bug):
    assert probe(bug, C, ROWS).ratio > 1.2
    with pytest.raises(PrivacyError, match="times the clipping norm"):
        require_bounded(bug, C, ROWS)


@pytest.mark.parametrize("released_sum", [honest, ours])
def test_a_clipped_sum_moves_by_the_clipping_norm_and_no_more(released_sum):
    assert probe(released_sum, C, ROWS).ratio == pytest.approx(1.0, abs=1e-3)
    require_bounded(released_sum, C, ROWS)


@settings(max_examples=30)
@given(
    seed=st.integers(0, 2**32), users=st.integers(1, 8), scale=st.sampled_from([1e-30, 1e-3, 1.0, 1e6, 1e30]),
    norm=st.sampled_from([1e-3, 0.5, 30.0]),
)  # fmt: skip
def test_the_clipped_sum_is_bounded_for_any_users(seed, users, scale, norm):
    rows = (np.random.default_rng(seed).standard_cauchy((users, 7)) * scale).astype(np.float32)
    found = probe(
        lambda r, w: clip_rows(r, norm)[0].sum(axis=0, dtype=np.float64), norm, rows, adversarial=seed % 2 == 0
    )
    assert found.bounded


def test_the_error_names_user_and_case():
    with pytest.raises(PrivacyError, match=r"user 0 .* a huge claimed weight"):
        require_bounded(weigh_by_claims, C, ROWS)


def test_the_rows_of_the_caller_stay_as_they_were():
    before = ROWS.copy()
    probe(lambda rows, weights: clip_rows(rows, C, in_place=True)[0].sum(axis=0), C, ROWS)
    assert np.array_equal(ROWS, before)
