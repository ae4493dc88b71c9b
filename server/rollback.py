"""The flag: a round after which the patch serves the cloud's own clicks worse than the tolerance allows is undone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fedquilt.config import Config
from fedquilt.errors import ConfigError
from server.task import Root


@dataclass
class Rollback:
    """Undone where judge(after) < (1 - tolerance) · judge(before).

    A round is compared with the patch that it started from: rounds that each lose less than the tolerance pass, however
    many they are.
    """

    judge: Callable[[np.ndarray], float]
    tolerance: float
    _level: tuple[bytes, float] | None = field(default=None, repr=False)

    def verdict(self, before_P: np.ndarray, after_P: np.ndarray) -> dict[str, Any]:
        """{"before", "after", "rolled_back"}, as a round's record holds it; depends on the two patches only."""
        before = self._known(before_P)
        after = self.judge(after_P)
        undone = not after >= (1 - self.tolerance) * before
        if not undone:
            self._level = (after_P.tobytes(), after)
        return {"before": before, "after": after, "rolled_back": undone}

    def _known(self, patch_P: np.ndarray) -> float:
        """The level of the patch that was kept last is not measured twice."""
        if self._level is None or self._level[0] != patch_P.tobytes():
            self._level = (patch_P.tobytes(), self.judge(patch_P))
        return self._level[1]


def make_rollback(config: Config, root: Root | None) -> Rollback | None:
    """None where it is off. ConfigError where it is on and the cloud has no root data."""
    tolerance = config.defence.rollback_tolerance
    if not math.isfinite(tolerance):
        return None
    if root is None:
        raise ConfigError(
            f"defence.rollback_tolerance = {tolerance:g} needs root data, and this deployment has none: set it to inf"
        )
    return Rollback(root.ndcg, tolerance)


def rolled_back(records: Iterable[Mapping[str, Any]]) -> list[int]:
    """Rounds, from their records."""
    return [record["round"] for record in records if record.get("validation", {}).get("rolled_back")]


def rollback_note(record: Mapping[str, Any]) -> str:
    """What the round's line says: "" for a round that stands."""
    seen = record.get("validation", {})
    if not seen.get("rolled_back"):
        return ""
    return f"rolled back: NDCG@10 on the cloud's own clicks {seen['before']:.4f} → {seen['after']:.4f}"
