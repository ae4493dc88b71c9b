"""Camouflage: the wish is as large a part of each row as the cloud's rule lets through."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from client.attacks.camouflage import SHARES
from client.attacks.contract import View, make_attack
from fedquilt.errors import ConfigError
from fedquilt.types import PatchSpec
from strategies.pre_rules.collusion_screening import CollusionScreening
from strategies.rules import RoundContext

P = 400


def mean_rule(rows_KP: np.ndarray) -> np.ndarray:
    return rows_KP.mean(0)


def screened_mean(rows_KP: np.ndarray) -> np.ndarray:
    even_K = torch.full((len(rows_KP),), 1 / len(rows_KP))
    rows, weights_K, _ = CollusionScreening()(torch.from_numpy(rows_KP), even_K, RoundContext())
    return (weights_K @ rows).numpy()


def few_against_the_first(rows_KP: np.ndarray) -> np.ndarray:
    """The mean; where more than three rows go against the first coordinate, of the others."""
    against_K = rows_KP[:, 0] < 0
    return rows_KP.mean(0) if against_K.sum() <= 3 else rows_KP[~against_K].mean(0)


def own_rows(rows_KP: np.ndarray) -> np.ndarray:
    """The first five, clipped."""
    return rows_KP[:5] / np.linalg.norm(rows_KP[:5], axis=1, keepdims=True)


def rows_for(rule, **options) -> np.ndarray:
    """Of five colluders among twenty, who want to turn the mean round."""
    rows_KP = np.random.default_rng(0).standard_normal((20, P)).astype(np.float32)
    rows_KP[:, 0] += 6
    attack = make_attack("camouflage", {"inner": "ipm", **options})
    spec = PatchSpec((("bottleneck.0.up", (P,)),))
    view = View(1, np.arange(5), own_rows(rows_KP), np.zeros(P, np.float32), spec, 1.0, np.array([0]),
                np.random.default_rng(1), attack.knows, benign=rows_KP[5:], oracle=rule)  # fmt: skip
    return attack.rows(view)


def likeness(rows_MP: np.ndarray) -> float:
    return float((rows_MP @ rows_MP.T)[np.triu_indices(len(rows_MP), 1)].mean())


def test_against_a_mean_nothing_is_hidden():
    assert likeness(rows_for(mean_rule)) == pytest.approx(1, abs=1e-4)


def test_against_a_screen_for_likeness_rows_are_made_unlike():
    assert likeness(rows_for(screened_mean)) < 0.5


def test_rows_have_the_clipping_norm():
    np.testing.assert_allclose(np.linalg.norm(rows_for(screened_mean), axis=1), 1, atol=1e-5)


def test_the_shares_end_with_the_whole_wish():
    assert SHARES[-1] == 1


def test_it_wraps_attacks_on_updates_only():
    with pytest.raises(ConfigError, match="inner must be an attack on updates, got 'label-flip'"):
        make_attack("camouflage", {"inner": "label-flip"})


def test_against_a_rule_that_counts_a_crew_pushes_and_the_others_are_honest():
    rows_MP = rows_for(few_against_the_first, crews=[1.0, 0.4])
    assert (rows_MP[:2, 0] < 0).all()
    assert (rows_MP[2:, 0] > 0).all()


def test_where_nothing_counts_the_whole_crew_pushes():
    np.testing.assert_array_equal(rows_for(mean_rule, crews=[0.4, 1.0]), rows_for(mean_rule))


@pytest.mark.parametrize("crews", [[], [0.0], [1.5]])
def test_a_crew_is_a_share_of_the_colluders(crews):
    with pytest.raises(ConfigError, match="crews"):
        make_attack("camouflage", {"crews": crews})


def test_a_quiet_row_lets_the_targets_bias_fall_by_a_hair():
    rows_KP = np.random.default_rng(0).standard_normal((20, P)).astype(np.float32)
    spec = PatchSpec((("item_bias", (P // 2,)), ("item_out.factors", (P // 2, 1))))
    attack = make_attack("camouflage", {"inner": "ipm", "quiet": True})
    view = View(1, np.arange(5), own_rows(rows_KP), np.zeros(P, np.float32), spec, 1.0, np.array([3]),
                np.random.default_rng(1), attack.knows, benign=rows_KP[5:], oracle=mean_rule)  # fmt: skip
    biases_M = attack.rows(view)[:, 3]
    assert ((biases_M < 0) & (biases_M > -1e-6)).all()
