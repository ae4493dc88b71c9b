"""Framing: colluders push what honest users of the round want, to have them taken for colluders."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from client.attacks.contract import ATTACKS, BENIGN, COLLUDERS, OWN, View
from client.attacks.vectors import of_norm
from fedquilt.errors import ConfigError


@ATTACKS.register("framing")
@dataclass(frozen=True)
class Framing:
    """Each sends its honest update, in which also the biases of ``items`` rise, those that most honest users of the
    round raise: by ``strength`` times the median over these users of their largest rise.

    For rules that leave out whoever pushes what too many push. Faint pushes cost the colluders nothing; with hard ones
    they are left out themselves. ConfigError for a patch without item biases.
    """

    items: int = 3
    strength: float = 0.03
    kind = "updates"
    goal = "untargeted"
    knows = frozenset({OWN, COLLUDERS, BENIGN})
    source = "fedquilt, against rules that leave out whoever pushes what many push"

    def __post_init__(self) -> None:
        if isinstance(self.items, bool) or not isinstance(self.items, int) or self.items < 1:
            raise ValueError(f"items must be a whole number of at least 1, got {self.items!r}")
        if not self.strength > 0:
            raise ValueError(f"strength must be above 0, got {self.strength!r}")

    def rows(self, view: View) -> np.ndarray:
        if "item_bias" not in view.spec.slices:
            raise ConfigError('this attack works on items\' biases: patch.parts needs "item-bias"')
        place = view.spec.slices["item_bias"]
        rises_HI = np.maximum(view.benign_HP[:, place], 0)
        wanted = np.argsort(-(rises_HI > 0).sum(axis=0), kind="stable")[: self.items] + place.start
        by = self.strength * float(np.median(rises_HI.max(axis=1)))
        rows_MP = view.own_MP.astype(np.float32)
        rows_MP[:, wanted] = np.maximum(rows_MP[:, wanted], by)
        return np.stack([of_norm(row_P, min(view.clipping_norm, float(np.linalg.norm(row_P)))) for row_P in rows_MP])
