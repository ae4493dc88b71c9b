"""FLTrust: updates are believed as far as they agree with the cloud's own (Cao et al. 2021, arXiv:2012.13995)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch

from strategies.rows import norms
from strategies.rules import AGGREGATORS, RoundContext, State, missing, require_users


@AGGREGATORS.register("fltrust")
@dataclass(frozen=True)
class FLTrust:
    """Σ s_k (||g|| / ||x_k||) x_k / Σ s_k, with s_k = max(0, cos(x_k, g)) and g the cloud's own update.  O(K·P).

    Nobody agrees: 0. The result is never longer than g. MissingContextError without g: the cloud needs clicks of its
    own, the root data. Holds against any number of liars as far as g does.
    """

    root_update_P: torch.Tensor | None = field(default=None, repr=False, compare=False)

    source = "Cao et al. 2021, arXiv:2012.13995"
    cost = "K·P"
    sensitivity = None
    breakdown = 1.0
    needs_root = True

    def in_round(self, context: RoundContext) -> FLTrust:
        return replace(self, root_update_P=context.root_update_P)

    def __call__(self, updates_KP: torch.Tensor, weights_K: torch.Tensor, state: State) -> torch.Tensor:
        return self.row_weights(updates_KP, weights_K, state).to(updates_KP.dtype) @ updates_KP

    def row_weights(self, updates_KP: torch.Tensor, weights_K: torch.Tensor, state: State) -> torch.Tensor:
        require_users(self, updates_KP)
        if self.root_update_P is None:
            raise missing(self, "the cloud's own update", "give the cloud root data, or choose another aggregator")
        root_P = self.root_update_P.to(updates_KP.dtype)
        length, norms_K = float(root_P.norm()), norms(updates_KP)
        inverse_K = torch.where(norms_K > 0, 1 / norms_K, torch.zeros_like(norms_K))
        unit_P = root_P / length if length else root_P
        trust_K = ((updates_KP @ unit_P).to(torch.float64) * inverse_K).clamp(0, 1)
        total = trust_K.sum()
        return trust_K * inverse_K * length / total if total > 0 else trust_K
