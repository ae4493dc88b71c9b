"""Camouflage: any attack on updates, hidden in each colluder's own honest update as far as the cloud's rule asks."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from client.attacks.around import Around
from client.attacks.contract import ATTACKS, View
from client.attacks.vectors import mean, of_norm, unit

SHARES = (0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.7, 1.0)

_HAIR = 1e-7


@ATTACKS.register("camouflage")
@dataclass(frozen=True)
class Camouflage(Around):
    """Row m is sqrt(1 - s²) own_m/|own_m| + s w_m/|w_m| at the clipping norm, w_m the row of ``inner``.

    Where two own updates are orthogonal, two rows have a cosine of s²: a small s is what rules that look for colluders
    cannot see. s is the one of ``SHARES`` for which the cloud's rule, its pre-rules and state included, goes furthest
    along the mean of w. ``crews``: shares of the round's colluders that may do it while the others send their own
    honest updates, tried as well: a rule that counts who asks for something does not see a small crew. ``quiet``: the
    targets' biases fall by a hair in every row: a rule that takes a falling bias for no push sees nothing of the rest.
    """

    inner: str = "pip-attack"
    crews: tuple[float, ...] = (1.0,)
    quiet: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "crews", tuple(self.crews))  # TOML has lists
        if not self.crews or not all(0 < crew <= 1 for crew in self.crews):
            raise ValueError(f"crews must be shares above 0 and at most 1, got {list(self.crews)!r}")

    @property
    def source(self) -> str:
        return "fedquilt; the constraint of Bagdasaryan et al. 2020, arXiv:1807.00459, by search against the rule"

    def rows(self, view: View) -> np.ndarray:
        wish_MP = self._inner.rows(view).astype(np.float64)
        biases = _target_biases(view) if self.quiet else np.empty(0, np.int64)
        wish_MP[:, biases] = 0
        way_P = unit(mean(wish_MP))
        tried = [_hidden(view, wish_MP, share, crew) for crew in self.crews for share in SHARES]
        for rows_MP in tried:
            rows_MP[:, biases] = -_HAIR
        gains = [float(view.rule(np.concatenate([view.benign_HP, rows_MP])) @ way_P) for rows_MP in tried]
        return tried[int(np.argmax(gains))]


def _target_biases(view: View) -> np.ndarray:
    """Places of the targets' biases in a row; none in a patch without biases."""
    place = view.spec.slices.get("item_bias")
    return np.empty(0, np.int64) if place is None else place.start + np.asarray(view.targets_T)


def _hidden(view: View, wish_MP: np.ndarray, share: float, crew: float) -> np.ndarray:
    """The first ``crew`` of the colluders hide the wish, the others send what honest training gave them."""
    cover, rows_MP = np.sqrt(1 - share**2), view.own_MP.astype(np.float32)
    for m in range(math.ceil(crew * len(wish_MP))):
        rows_MP[m] = of_norm(cover * unit(view.own_MP[m]) + share * unit(wish_MP[m]), view.clipping_norm)
    return rows_MP
