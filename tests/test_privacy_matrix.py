"""DP-FTRL: sensitivities against brute force, noise against its formula."""

from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedquilt.errors import PrivacyError
from fedquilt.privacy.events import MatrixOpened
from fedquilt.privacy.matrix import (
    MatrixNoise,
    band_coefficients,
    banded_sensitivity,
    prefix_noise_variance,
    require_separation,
    tree_sensitivity,
)
from fedquilt.privacy.randomness import Simulated


def tree_matrix(rounds):
    """Rows are nodes of the binary tree that prefixes use, columns rounds."""
    rows = []
    for level in range(rounds.bit_length()):
        for start in range(0, rounds, 2**level):
            rows.append([1.0 if start <= t < start + 2**level else 0.0 for t in range(rounds)])
    return np.array(rows)


def banded_matrix(rounds, bands):
    c = np.concatenate([band_coefficients(bands), np.zeros(rounds)])
    return np.array([[c[i - j] if i >= j else 0.0 for j in range(rounds)] for i in range(rounds)])


def worst(matrix, k, separation):
    """Largest ||Σ columns|| over all allowed sets of rounds; rows of a user all alike are the worst for C >= 0."""
    rounds = matrix.shape[1]
    sets = [
        places
        for size in range(1, k + 1)
        for places in combinations(range(rounds), size)
        if all(b - a >= separation for a, b in pairwise(places))
    ]
    return max(np.linalg.norm(matrix[:, list(places)].sum(axis=1)) for places in sets)


@given(rounds=st.integers(1, 12), k=st.integers(1, 3), separation=st.integers(1, 6))
def test_the_tree_bound_holds_for_every_participation_pattern(rounds, k, separation):
    assert worst(tree_matrix(rounds), k, separation) <= tree_sensitivity(rounds, k, separation) + 1e-9


def test_the_tree_bound_is_tight_for_one_participation():
    assert tree_sensitivity(8, 1, 1) == pytest.approx(worst(tree_matrix(8), 1, 1)) == pytest.approx(2.0)


@given(rounds=st.integers(1, 12), bands=st.integers(1, 5), k=st.integers(1, 3), wider=st.integers(0, 3))
def test_the_banded_bound_holds_for_every_participation_pattern(rounds, bands, k, wider):
    bound = banded_sensitivity(bands, k, bands + wider)
    assert worst(banded_matrix(rounds, bands), k, bands + wider) <= bound + 1e-9


def test_bands_wider_than_the_separation_are_refused():
    with pytest.raises(PrivacyError, match="at least 4 apart"):
        banded_sensitivity(4, 1, 3)


def test_the_band_is_the_square_root_of_the_prefix_sum():
    # Golden: (1 - x)^(-1/2) = 1 + x/2 + 3x²/8 + 5x³/16 + ...
    assert band_coefficients(4).tolist() == pytest.approx([1, 0.5, 0.375, 0.3125])
    full = banded_matrix(6, 6)
    assert np.allclose(full @ full, np.tril(np.ones((6, 6))))


def opened(strategy, rounds, **facts):
    event = {"tree": (tree_sensitivity(rounds, 1, rounds), 0), "banded": (banded_sensitivity(4, 1, rounds), 4)}[
        strategy
    ]
    return MatrixOpened("r", 1, "m", strategy, rounds, 2.0, 0.5, event[0], 1, rounds, bands=event[1], **facts)


@pytest.mark.parametrize("strategy", ["tree", "banded"])
def test_prefix_noise_has_the_stated_variance_and_a_test_rejects_five_percent(strategy):
    noise = MatrixNoise(opened(strategy, 11), 20_000, Simulated(4))
    prefixes = np.cumsum([noise.increment(step) for step in range(11)], axis=0)
    stated = prefix_noise_variance(noise.event) * noise.std**2
    ratio = prefixes.var(axis=1) / stated
    assert np.abs(ratio - 1).max() < 0.045  # 4.5 standard errors of 20,000 normals
    assert np.abs(ratio / 0.95**2 - 1).max() > 0.06


def test_banded_noise_is_the_inverse_of_the_band():
    noise = MatrixNoise(opened("banded", 6), 3, Simulated(4))
    z = np.array([noise._white(f"z/{step}") for step in range(6)])
    assert np.allclose(banded_matrix(6, 4) @ np.array([noise.increment(step) for step in range(6)]), z)


def test_banded_noise_on_long_prefixes_is_smaller_than_independent_noise():
    assert prefix_noise_variance(opened("banded", 64))[-1] < 64 / 2


def test_a_step_beyond_the_opened_rounds_is_refused():
    with pytest.raises(PrivacyError, match="opened for 11"):
        MatrixNoise(opened("tree", 11), 3, Simulated(4)).increment(11)


def test_a_sensitivity_set_below_the_facts_is_refused():
    with pytest.raises(PrivacyError, match="its facts give 2"):
        MatrixNoise(MatrixOpened("r", 1, "m", "tree", 8, 2.0, 0.5, 1.0, 1, 8), 3, Simulated(4))


def test_a_user_who_comes_back_too_soon_is_named():
    last: dict[int, int] = {}
    require_separation(last, np.array([1, 2]), 1, 4)
    require_separation(last, np.array([1]), 5, 4)
    with pytest.raises(PrivacyError, match="user 1 took part in round 5"):
        require_separation(last, np.array([1, 2]), 8, 4)
