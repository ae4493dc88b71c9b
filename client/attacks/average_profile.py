"""Average profiles."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from client.attacks.contract import ATTACKS, OWN, POPULARITY, Clicks
from client.attacks.profiles import drawn, profiles, require_share


@ATTACKS.register("average-profile")
@dataclass(frozen=True)
class AverageProfile:
    """Clicks the targets among fillers drawn in proportion to popularity, as an average profile has them."""

    share: float = 0.25
    kind = "clicks"
    goal = "promote"
    knows = frozenset({OWN, POPULARITY})
    source = "Lam and Riedl 2004, Shilling recommender systems for fun and profit, WWW"

    def __post_init__(self) -> None:
        require_share(self.share)

    def histories(self, clicks: Clicks) -> Mapping[int, np.ndarray]:
        return profiles(clicks, drawn(clicks, clicks.popularity_I), self.share)
