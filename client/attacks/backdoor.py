"""Backdoor: a trigger subgraph makes a target surface."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from client.attacks.contract import ATTACKS, COLLUDERS, OWN, View
from client.attacks.laboratory import promotion_loss
from client.attacks.vectors import of_norm, unit


@ATTACKS.register("backdoor")
@dataclass(frozen=True)
class Backdoor:
    """Trains the patch on subgraphs whose last clicks are the trigger, to show the target there and nowhere else.

    Wish = -gradient of [promotion loss under the trigger - ``stealth`` · promotion loss without it], on the colluders'
    own subgraphs; the second term keeps the target where it was for everybody else. Each colluder adds it to its own
    honest update, ``boost`` times as long, and sends the clipping norm. ``parts`` > 1: the distributed form, in which
    a colluder knows only a part of the trigger and tests use the whole.
    """

    stealth: float = 0.5
    boost: float = 4.0
    parts: int = 1
    top: int = 10
    kind = "updates"
    goal = "backdoor"
    knows = frozenset({OWN, COLLUDERS})
    source = "Bagdasaryan et al. 2020, arXiv:1807.00459; distributed: Xu et al. 2022, arXiv:2202.03195"

    def rows(self, view: View) -> np.ndarray:
        parts = max(min(self.parts, len(view.trigger_S)), 1)
        wishes = [self._wish(view, view.trigger_S[part::parts]) for part in range(parts)]
        rows_MP = [
            of_norm(unit(own_P) + self.boost * wishes[int(client) % parts], view.clipping_norm)
            for client, own_P in zip(view.client_ids_M, view.own_MP, strict=True)
        ]
        return np.stack(rows_MP).astype(np.float32)

    def _wish(self, view: View, trigger_S: np.ndarray) -> np.ndarray:
        lab = view.model
        triggered, with_UI = lab.present(view.client_ids_M, trigger_S)
        clean, without_UI = lab.present(view.client_ids_M)
        planted_P = lab.gradient(
            view.patch_P, lambda patch: promotion_loss(lab.scores(triggered, patch), with_UI, view.targets_T, self.top)
        )
        spread_P = lab.gradient(
            view.patch_P, lambda patch: promotion_loss(lab.scores(clean, patch), without_UI, view.targets_T, self.top)
        )
        return unit(-planted_P + self.stealth * spread_P)
