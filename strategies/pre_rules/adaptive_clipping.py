"""Adaptive robust clipping, ARC (Allouah et al. 2025, arXiv:2405.14432)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from strategies.pre_rules.clipping import clip_to
from strategies.rows import norms
from strategies.rules import PRE_RULES, RoundContext, require_count, require_users


@PRE_RULES.register("adaptive-clipping")
@dataclass(frozen=True)
class AdaptiveClipping:
    """The floor(2 f (K - f) / K) longest rows are clipped to the longest norm among the others.  O(K·P).

    Needs K > 2f. f = 0 changes nothing.
    """

    num_byzantine: int = 1

    source = "Allouah et al. 2025, arXiv:2405.14432"
    cost = "K·P"

    def __post_init__(self) -> None:
        require_count("num_byzantine", self.num_byzantine)

    def needs(self, num_byzantine: int) -> int:
        return 2 * num_byzantine + 1

    def __call__(
        self, updates_KP: torch.Tensor, weights_K: torch.Tensor, context: RoundContext
    ) -> tuple[torch.Tensor, torch.Tensor, RoundContext]:
        k, f = require_users(self, updates_KP), self.num_byzantine
        norms_K = norms(updates_KP)
        num_clipped = 2 * f * (k - f) // k
        bound = float(norms_K.sort().values[k - num_clipped - 1])
        return clip_to(updates_KP, norms_K, bound), weights_K, context
