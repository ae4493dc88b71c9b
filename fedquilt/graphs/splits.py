"""How a log becomes training clicks and held-out clicks. Every split names its protocol and has a hash.

``train`` is what the devices hold. ``cloud`` is the part of it that the cloud may see: everything (warm cloud), the
part before a point in global time (stale cloud), or nothing (pure federation).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedquilt.graphs.log import InteractionLog


@dataclass(frozen=True)
class HeldOut:
    """Held-out clicks, H of them: user, item, and (loo99 only) 99 frozen negatives each."""

    users_H: np.ndarray
    items_H: np.ndarray
    negatives_HM: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.users_H)


@dataclass(frozen=True)
class Split:
    protocol: str
    train: InteractionLog
    cloud: InteractionLog
    valid: HeldOut
    test: HeldOut
    hash: str
