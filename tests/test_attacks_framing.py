"""Framing: honest updates that also raise the biases of what honest users want."""

from __future__ import annotations

import numpy as np
import pytest

from client.attacks.contract import View, make_attack
from fedquilt.errors import ConfigError
from fedquilt.types import PatchSpec

ITEMS = 6
SPEC = PatchSpec((("item_bias", (ITEMS,)), ("readout", (2,))))
# Three honest users raise item 4, two item 1, one item 5; every largest rise is 0.8.
HONEST = np.array(
    [[-0.1, 0.8, -0.1, 0, 0.2, 0, 0, 0], [0, 0.8, 0, 0, 0.1, 0, 0, 0], [0, 0, 0, -0.2, 0.8, 0.3, 0, 0]], np.float32
)
OWN = np.array([[0.1, 0, 0, 0, 0, 0, 0.2, 0], [0, 0, 0, 0, 0.5, 0, 0, 0.2]], np.float32)


def rows(spec: PatchSpec = SPEC, norm: float = 10.0, **options) -> np.ndarray:
    attack = make_attack("framing", options)
    view = View(1, np.arange(2), OWN, np.zeros(8, np.float32), spec, norm, np.array([0]),
                np.random.default_rng(0), attack.knows, benign=HONEST)  # fmt: skip
    return attack.rows(view)


def test_what_most_honest_users_raise_is_raised_too():
    assert rows(items=2, strength=0.5)[0] == pytest.approx([0.1, 0.4, 0, 0, 0.4, 0, 0.2, 0])


def test_what_is_raised_further_anyway_stays():
    assert rows(items=1, strength=0.5)[1] == pytest.approx(OWN[1])


def test_rows_stay_within_the_clipping_norm():
    assert np.linalg.norm(rows(norm=0.3, strength=1.0), axis=1) == pytest.approx([0.3, 0.3])


def test_a_patch_without_biases_of_items_is_refused():
    with pytest.raises(ConfigError, match="item-bias"):
        rows(PatchSpec((("readout", (8,)),)))


@pytest.mark.parametrize("options", [{"items": 0}, {"strength": 0.0}])
def test_a_parameter_out_of_range_is_named(options):
    with pytest.raises(ConfigError, match=f"{next(iter(options))} must be"):
        rows(**options)
