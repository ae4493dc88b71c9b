"""Nearest-neighbour mixing, NNM (Allouah et al. 2023, arXiv:2302.01772)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from strategies.distances import nearest_mixing, squared_distances
from strategies.rows import room_like
from strategies.rules import PRE_RULES, RoundContext, require_count, require_users


@PRE_RULES.register("nearest-neighbour-mixing")
@dataclass(frozen=True)
class NearestNeighbourMixing:
    """Every update becomes the mean of the K - f updates nearest to it, itself among them.  O(K²·P).

    As one product of [K, K] and [K, P]: two [K, P] and one [K, K] in memory. Needs K > 2f.
    """

    num_byzantine: int = 1

    source = "Allouah et al. 2023, arXiv:2302.01772"
    cost = "K²·P"
    mixes = True
    translation = scale = True

    def __post_init__(self) -> None:
        require_count("num_byzantine", self.num_byzantine)

    def needs(self, num_byzantine: int) -> int:
        return 2 * num_byzantine + 1

    def __call__(
        self, updates_KP: torch.Tensor, weights_K: torch.Tensor, context: RoundContext
    ) -> tuple[torch.Tensor, torch.Tensor, RoundContext]:
        k = require_users(self, updates_KP)
        mixing_KK = nearest_mixing(squared_distances(updates_KP), k - self.num_byzantine)
        out_KP = room_like(updates_KP)
        mixed_KP = torch.mm(mixing_KK, updates_KP, out=out_KP)
        return mixed_KP, weights_K, replace(context, client_ids_K=None, nodes_K=None)
