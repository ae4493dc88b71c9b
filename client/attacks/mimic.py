"""Mimic."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from client.attacks.contract import ATTACKS, BENIGN, COLLUDERS, OWN, View
from client.attacks.vectors import alike, mean, unit


@ATTACKS.register("mimic")
@dataclass(frozen=True)
class Mimic:
    """All copy one honest user, the one furthest along the direction in which honest rows differ most.

    Nothing in a row is forged, so no check of rows finds it; the one user counts M + 1 times. The direction is the top
    right singular vector of the centred honest rows, by power iteration, carried on from round to round.
    """

    power_steps: int = 5
    kind = "updates"
    goal = "untargeted"
    knows = frozenset({OWN, COLLUDERS, BENIGN})
    source = "Karimireddy, He and Jaggi 2022, arXiv:2006.09365"

    def rows(self, view: View) -> np.ndarray:
        rows_HP = view.benign_HP
        centred_HP = rows_HP - mean(rows_HP)
        start_P = view.memory.get("mimic")
        z_P = unit(view.generator.standard_normal((rows_HP.shape[1],))) if start_P is None else start_P
        for _ in range(self.power_steps):
            z_P = unit(centred_HP.T @ (centred_HP @ z_P))
        view.memory["mimic"] = z_P
        return alike(rows_HP[int(np.argmax(rows_HP @ z_P))], len(view.own_MP))
