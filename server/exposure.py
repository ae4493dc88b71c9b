"""A ceiling on exposure: how many of the cloud's own users an item may be shown to, whoever asked for it.

Rules on updates cannot tell a wave of colluders from a hit: an item that honest users like is supported by fewer of a
round than the colluders whom a rule is to withstand, so a rule that stops these learns no item. The ceiling bounds what
a promotion gets instead: the cloud ranks for users of its own, as a device would, and takes off an item's bias what it
needs to stay below its bound. Training goes on from the patch as it was. It says nothing about users who are unlike the
cloud's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedquilt.config import Config
from fedquilt.defences import DefenceConfig
from fedquilt.errors import ConfigError
from fedquilt.types import PatchSpec
from server.judges import Judges

K = 10
_BIAS = "item_bias"
_PASSES = 20
STEP = 1e-4  # beyond the place at which an item leaves a list; scores are logits


@dataclass(frozen=True)
class ExposureCeiling:
    """``scores``: patch_P -> [J, I] of the judges; ``seen_JI``: what they never get; ``bias``: the place in P."""

    scores: Callable[[np.ndarray], np.ndarray]
    seen_JI: np.ndarray
    allowed_I: np.ndarray
    bias: slice

    def lowered(self, patch_P: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
        """(The patch with item biases lowered as far as needed, {"items": how many, "most": the largest step}).

        A patch whose scores are not finite is given back as it is.
        """
        scores_JI = self.scores(patch_P)
        if not np.isfinite(scores_JI).all():
            return patch_P, {"items": 0, "most": 0.0}
        off_I = lowering(scores_JI, self.seen_JI, self.allowed_I)
        next_P = patch_P.copy()
        next_P[self.bias] -= off_I.astype(patch_P.dtype)
        return next_P, {"items": int(np.count_nonzero(off_I)), "most": float(off_I.max(initial=0.0))}


def lowering(scores_JI: np.ndarray, seen_JI: np.ndarray, allowed_I: np.ndarray, k: int = K) -> np.ndarray:
    """float64 [I] >= 0: what each item's score loses until it is in the top k of at most ``allowed_I`` of J users.

    An item above its bound goes just below the place that lets it into the lists of those who score it best, all such
    items at once, and again, as others move up: at most 20 times, each a little further, so that it ends.
    """
    left_JI = np.where(seen_JI, -np.inf, scores_JI).astype(np.float64)
    off_I = np.zeros(left_JI.shape[1])
    k = min(k, left_JI.shape[1] - 1)
    for attempt in range(_PASSES):
        shown_JI, margins_JI = margins(left_JI, k)
        over = np.flatnonzero(shown_JI.sum(axis=0) > allowed_I)
        if not len(over):
            break
        best_first_JO = -np.sort(-margins_JI[:, over], axis=0)
        off_O = best_first_JO[allowed_I[over], np.arange(len(over))] + STEP * 2**attempt
        left_JI[:, over] -= off_O
        off_I[over] += off_O
    return off_I


def shown_to(scores_JI: np.ndarray, seen_JI: np.ndarray, k: int = K) -> np.ndarray:
    """int64 [I]: in how many users' top k an item is."""
    left_JI = np.where(seen_JI, -np.inf, scores_JI).astype(np.float64)
    return margins(left_JI, min(k, left_JI.shape[1] - 1))[0].sum(axis=0)


def margins(left_JI: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """(Is it in the top k?, by how much it is above the place where it would not be), both [J, I]; ``left_JI``: scores,
    -inf for what a judge never gets.
    """
    two_J2 = -np.partition(-left_JI, (k - 1, k), axis=1)[:, k - 1 : k + 1]
    kth_J1, next_J1 = two_J2[:, :1], two_J2[:, 1:]
    open_JI = np.isfinite(left_JI)
    shown_JI = (left_JI >= kth_J1) & open_JI
    bar_JI = np.where(shown_JI, next_J1, kth_J1)
    margins_JI = np.where(open_JI, left_JI, 0) - np.where(np.isfinite(bar_JI), bar_JI, 0)
    return shown_JI, np.where(open_JI, margins_JI, -np.inf)


def wants_ceiling(defence: DefenceConfig) -> bool:
    return math.isfinite(defence.exposure_share)


def make_ceiling(config: Config, judges: Judges, spec: PatchSpec) -> ExposureCeiling:
    """An item may reach ``exposure_share`` of the judges who have not clicked it, or ``exposure_growth`` times as many
    as the base model shows it to. ConfigError for a patch without item biases.
    """
    if _BIAS not in spec.slices:
        raise ConfigError(
            f"defence.exposure_share = {config.defence.exposure_share:g} works on item biases, and patch.parts ="
            f' {list(config.patch.parts)} has none: add "item-bias", or set it to inf'
        )
    open_I = (~judges.seen_JI).sum(axis=0)
    from_base_I = config.defence.exposure_growth * shown_to(judges.scores(None), judges.seen_JI)
    allowed_I = np.floor(np.maximum(config.defence.exposure_share * open_I, from_base_I)).astype(np.int64)
    allowed_I = np.minimum(allowed_I, len(judges.seen_JI) - 1)
    return ExposureCeiling(judges.scores, judges.seen_JI, allowed_I, spec.slices[_BIAS])
