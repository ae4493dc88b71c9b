"""Minimum-diameter averaging (El Mhamdi et al. 2020, arXiv:1905.03853)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from strategies.diameter import smallest_ball, smallest_diameter
from strategies.distances import squared_distances
from strategies.rows import weighted_sum
from strategies.rules import AGGREGATORS, State, require_count, require_users


@AGGREGATORS.register("mda")
@dataclass(frozen=True)
class MinimumDiameterAveraging:
    """Mean of the K - f users of the least diameter, the largest distance between two of them.

    Exact for f up to ``exact_up_to``: a vertex cover of the pairs that are too far apart, O(K²·P + 1.4^f K) and not a
    choice among all subsets. Beyond, the K - f nearest to the best user, at most twice the least diameter, and the
    round's record says so. Needs K > 2f.
    """

    num_byzantine: int = 1
    exact_up_to: int = 12

    source = "El Mhamdi et al. 2020, arXiv:1905.03853"
    cost = "K²·P + 1.4^f K"
    sensitivity = None
    breakdown = 0.5
    translation = scale = True

    def __post_init__(self) -> None:
        require_count("num_byzantine", self.num_byzantine)
        require_count("exact_up_to", self.exact_up_to)

    def needs(self, num_byzantine: int) -> int:
        return 2 * num_byzantine + 1

    def note(self, num_users: int) -> str:
        if self.num_byzantine <= self.exact_up_to:
            return ""
        return f"mda is approximated (at most twice the least diameter): f={self.num_byzantine} > {self.exact_up_to}"

    def __call__(self, updates_KP: torch.Tensor, weights_K: torch.Tensor, state: State) -> torch.Tensor:
        return weighted_sum(self.row_weights(updates_KP, weights_K, state), updates_KP)

    def row_weights(self, updates_KP: torch.Tensor, weights_K: torch.Tensor, state: State) -> torch.Tensor:
        k, f = require_users(self, updates_KP), self.num_byzantine
        if f == 0:
            return torch.full_like(weights_K, 1 / k)
        find = smallest_diameter if f <= self.exact_up_to else smallest_ball
        chosen = torch.from_numpy(find(squared_distances(updates_KP).numpy(), f))
        return torch.zeros_like(weights_K).index_fill_(0, chosen, 1 / len(chosen))
