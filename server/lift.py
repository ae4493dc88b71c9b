"""A ceiling on lift: no user gets more of the patch, for any item, than nearly all of the cloud's own users get.

A backdoor must lift its target far for whoever clicks the trigger, and for nobody else, or it is seen. So its lift lies
beyond what any usual subgraph gets, while the lift of an honest hit is spread over those who like its kind. The cloud
ranks for users of its own and tells devices the most that nearly all of them get. It holds while fewer than
1 - ``quantile`` of these users are the attacker's own, with the trigger in the cloud's log, or like the target anyway.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from fedquilt.defences import DefenceConfig
from models.lift import lifts


@dataclass(frozen=True)
class LiftCeiling:
    """``scores``: patch_P or None (the base model) -> [J, I] of the judges; ``quantile``: in (0, 1)."""

    scores: Callable[[np.ndarray | None], np.ndarray]
    quantile: float

    @cached_property
    def _base_JI(self) -> torch.Tensor:
        return torch.from_numpy(self.scores(None))

    def over(self, patch_P: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
        """(float32 [I], the ``quantile`` over judges of each item's lift; {"median", "most"} of these over items).

        All zero, so that no item is lifted, for a patch whose scores are not finite.
        """
        lifts_JI = lifts(torch.from_numpy(self.scores(patch_P)), self._base_JI).numpy()
        if not np.isfinite(lifts_JI).all():
            lifts_JI = np.zeros_like(lifts_JI)
        ceiling_I: np.ndarray = np.quantile(lifts_JI, self.quantile, axis=0).astype(np.float32)
        return ceiling_I, {"median": float(np.median(ceiling_I)), "most": float(ceiling_I.max())}


def wants_lift(defence: DefenceConfig) -> bool:
    return defence.lift_quantile > 0
