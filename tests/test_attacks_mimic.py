"""Mimics in groups: three colluders who copy an honest row have its sender left out by a screen for repeated rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from client.attacks.contract import View, make_attack
from fedquilt.errors import ConfigError
from fedquilt.types import PatchSpec
from strategies.pre_rules.collusion_screening import CollusionScreening
from strategies.rules import RoundContext

ITEMS, HONEST, COLLUDERS = 400, 82, 18
SPEC = PatchSpec((("item_bias", (ITEMS,)), ("bottleneck.0.up", (8,))))


def honest_rows() -> np.ndarray:
    """User k touches 10 + k % 30 items; so 0, 30 and 60 touch the fewest, then 1, 31 and 61."""
    rng = np.random.default_rng(0)
    rows = np.zeros((HONEST, ITEMS + 8), np.float32)
    for k, row in enumerate(rows):
        row[rng.choice(ITEMS, 10 + k % 30, replace=False)] = 1
    return rows + np.float32([0] * ITEMS + [0.1] * 8)


def forged(**options: Any) -> np.ndarray:
    attack, rows_HP = make_attack("mimic", options), honest_rows()
    patch_P = np.zeros(SPEC.num_parameters, np.float32)
    view = View(1, np.arange(COLLUDERS), rows_HP[:COLLUDERS], patch_P, SPEC, 1.0, np.array([0]),
                np.random.default_rng(1), attack.knows, benign=rows_HP)  # fmt: skip
    return attack.rows(view)


def left_out(forged_MP: np.ndarray) -> set[int]:
    """Honest users without a place after the screen."""
    rows = torch.from_numpy(np.concatenate([honest_rows(), forged_MP]))
    context = RoundContext(client_ids_K=np.arange(len(rows)))
    _, _, seen = CollusionScreening()(rows, torch.full((len(rows),), 1 / len(rows)), context)
    assert seen.client_ids_K is not None
    return set(range(HONEST)) - set(seen.client_ids_K.tolist())


def test_nobody_honest_is_left_out_where_nobody_copies():
    own = np.random.default_rng(2).standard_normal((COLLUDERS, SPEC.num_parameters)).astype(np.float32)
    assert left_out(own) == set()


def test_eighteen_mimics_in_groups_of_three_have_nobody_left_out():
    assert left_out(forged(group=3, victims="tail")) == set()


def test_eighteen_mimics_in_crowds_of_nine_have_two_tail_users_left_out():
    assert left_out(forged(group=9, victims="tail")) == {0, 30}


def test_without_groups_all_copy_one():
    assert len(np.unique(forged(), axis=0)) == 1
    assert len(left_out(forged())) == 1


def test_groups_copy_as_many_users_furthest_first():
    rows_MP = forged(group=6)
    assert len(np.unique(rows_MP, axis=0)) == 3
    assert np.array_equal(rows_MP[0], forged()[0])


@pytest.mark.parametrize(("option", "value"), [("group", -1), ("group", "3"), ("victims", "head")])
def test_a_wrong_option_is_named(option, value):
    with pytest.raises(ConfigError, match=f"{option} must be"):
        make_attack("mimic", {option: value})
