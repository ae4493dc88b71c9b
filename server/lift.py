"""A ceiling on lift: no user gets more of the patch, for any item, than nearly all of the cloud's own users get.

A backdoor must lift its target far for whoever clicks the trigger, and for nobody else, or it is seen. So its lift lies
beyond what any usual subgraph gets, while the lift of an honest hit is spread over those who like its kind. The cloud
ranks for users of its own and tells devices the most that nearly all of them get. It holds while fewer than
1 - ``quantile`` of these users are the attacker's own, with the trigger in the cloud's log, or like the target anyway.
With a panel (``server/panel.py``) the ceiling of an item is also as low as what the panel clicks says.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fedquilt.defences import DefenceConfig
from models.lift import lifts
from server.judges import Judges
from server.panel import Panel, PanelBound, make_bound


@dataclass(frozen=True, eq=False)
class LiftCeiling:
    """``scores``: patch_P -> [J, I] of the judges; ``base_JI``: of the base model; ``quantile``: in (0, 1)."""

    scores: Callable[[np.ndarray], np.ndarray]
    base_JI: np.ndarray
    quantile: float
    bound: PanelBound | None = None

    def over(self, patch_P: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
        """(float32 [I], the ``quantile`` over judges of each item's lift, or less under a panel's bound; {"median",
        "most"} of these over items, and under a bound "held", how many items it lowered).

        All zero, so that no item is lifted, for a patch whose scores are not finite.
        """
        lifts_JI = lifts(torch.from_numpy(self.scores(patch_P)), torch.from_numpy(self.base_JI)).numpy()
        if not np.isfinite(lifts_JI).all():
            lifts_JI = np.zeros_like(lifts_JI)
        ceiling_I: np.ndarray = np.quantile(lifts_JI, self.quantile, axis=0).astype(np.float32)
        told: dict[str, Any] = {}
        if self.bound is not None:
            before_I, ceiling_I = ceiling_I, self.bound.lowered(ceiling_I, self.base_JI, lifts_JI)
            told["held"] = int((ceiling_I < before_I).sum())
        return ceiling_I, {"median": float(np.median(ceiling_I)), "most": float(ceiling_I.max()), **told}


def wants_lift(defence: DefenceConfig) -> bool:
    return defence.lift_quantile > 0


def make_lift(defence: DefenceConfig, judges: Judges, panel: Panel | None) -> LiftCeiling:
    base_JI = judges.scores(None)
    bound = None if panel is None else make_bound(defence, panel, base_JI, judges.seen_JI)
    return LiftCeiling(judges.scores, base_JI, defence.lift_quantile, bound)
