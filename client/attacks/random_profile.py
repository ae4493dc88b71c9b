"""Random profiles."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from client.attacks.contract import ATTACKS, OWN, Clicks
from client.attacks.profiles import drawn, profiles, require_share


@ATTACKS.register("random-profile")
@dataclass(frozen=True)
class RandomProfile:
    """Clicks the targets among fillers drawn evenly from the catalogue; ``share`` of the clicks are on targets."""

    share: float = 0.25
    kind = "clicks"
    goal = "promote"
    knows = frozenset({OWN})
    source = "Lam and Riedl 2004, Shilling recommender systems for fun and profit, WWW"

    def __post_init__(self) -> None:
        require_share(self.share)

    def histories(self, clicks: Clicks) -> Mapping[int, np.ndarray]:
        return profiles(clicks, drawn(clicks, np.ones(clicks.num_items)), self.share)
