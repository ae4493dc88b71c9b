"""Bucketing (Karimireddy, He and Jaggi 2022, arXiv:2006.09365)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from fedquilt.seeds import key_for
from strategies.rows import grouped
from strategies.rules import PRE_RULES, RoundContext, require_count, require_users


@PRE_RULES.register("bucketing")
@dataclass(frozen=True)
class Bucketing:
    """Means of ``size`` users each, shuffled anew every round.  O(K·P).

    K' = ceil(K / size) rows are left, the last of fewer users where K does not divide; up to f of them are touched by
    f liars, so the rule's num_byzantine stays. A bucket has the weight of its users together. The shuffle depends on
    the run's seed and the round.
    """

    size: int = 2

    source = "Karimireddy et al. 2022, arXiv:2006.09365"
    cost = "K·P"
    mixes = draws = True
    translation = scale = True

    def __post_init__(self) -> None:
        require_count("size", self.size, least=1)

    def __call__(
        self, updates_KP: torch.Tensor, weights_K: torch.Tensor, context: RoundContext
    ) -> tuple[torch.Tensor, torch.Tensor, RoundContext]:
        k = require_users(self, updates_KP)
        generator = torch.Generator().manual_seed(key_for(context.run_seed, context.round_, 0, "bucketing") >> 1)
        means_KP, sums_K = grouped(updates_KP, weights_K, torch.randperm(k, generator=generator), self.size)
        return means_KP, sums_K, replace(context, client_ids_K=None, nodes_K=None)
