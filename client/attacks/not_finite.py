"""Colluding senders of NaN and infinity."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from client.attacks.contract import ATTACKS, OWN, View

_VALUES = {"nan": (np.nan,), "inf": (np.inf,), "mixed": (np.nan, np.inf, -np.inf, np.float32(3.4e38))}


@ATTACKS.register("not-finite")
@dataclass(frozen=True)
class NotFinite:
    """Sends NaN, infinities or the largest floats: one entry of an honest row (``entries``), or all of them (0)."""

    value: str = "mixed"
    entries: int = 0
    kind = "updates"
    goal = "untargeted"
    knows = frozenset({OWN})
    source = "Blanchard et al. 2017, arXiv:1703.02757, Lemma 1: one such row ends a mean"

    def __post_init__(self) -> None:
        if self.value not in _VALUES:
            raise ValueError(f"value must be one of {', '.join(_VALUES)}, got {self.value!r}")

    def rows(self, view: View) -> np.ndarray:
        rows_MP = view.own_MP.astype(np.float32, copy=True)
        values = np.array(_VALUES[self.value], np.float32)
        rows_MP[:, : self.entries or None] = values[view.client_ids_M % len(values)][:, None]
        return rows_MP
