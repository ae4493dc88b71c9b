"""FoolsGold: Sybils are alike (Fung, Yoon and Beschastnikh 2020, arXiv:1808.04866)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import torch

from strategies.distances import cosines
from strategies.rows import weighted_sum
from strategies.rules import AGGREGATORS, RoundContext, State, require_users

_EDGE = 1e-5


@AGGREGATORS.register("foolsgold")
@dataclass(frozen=True)
class FoolsGold:
    """Mean of the updates, each weighted by how unlike all others its sender's updates are.  O(K²·P).

    v_k = max_j cos(h_k, h_j) of the senders' updates summed over rounds; cos(k, j) is pardoned by v_k / v_j where
    v_j > v_k; weight 1 - max_j cos, scaled to a largest of 1, then ln(w / (1 - w)) + 0.5, clipped to 0 and 1. All
    weights 0: nobody is trusted and the update is 0. Built against many alike, whatever their number; one lone liar
    keeps full weight, so the breakdown point is 0.

    ``memory``: sum each sender's updates over rounds, as the paper does; P numbers a sender in the checkpoint. Off,
    only this round's updates are compared.
    """

    memory: bool = False
    client_ids_K: np.ndarray | None = field(default=None, repr=False, compare=False)

    source = "Fung et al. 2020, arXiv:1808.04866"
    cost = "K²·P"
    sensitivity = None
    breakdown = 0.0
    scale = True

    @property
    def needs_ids(self) -> bool:
        return self.memory

    def in_round(self, context: RoundContext) -> FoolsGold:
        return replace(self, client_ids_K=context.client_ids_K)

    def __call__(self, updates_KP: torch.Tensor, weights_K: torch.Tensor, state: State) -> torch.Tensor:
        return weighted_sum(self.row_weights(updates_KP, weights_K, state), updates_KP)

    def row_weights(self, updates_KP: torch.Tensor, weights_K: torch.Tensor, state: State) -> torch.Tensor:
        k = require_users(self, updates_KP)
        if k == 1:
            return torch.ones_like(weights_K)
        logits_K = _trust(cosines(self._past(state, updates_KP) + updates_KP if self.memory else updates_KP))
        total = logits_K.sum()
        return (logits_K / total if total > 0 else logits_K).to(updates_KP.dtype)

    def next_state(self, updates_KP: torch.Tensor, weights_K: torch.Tensor, state: State) -> State:
        if not self.memory:
            return state
        ids_K, sums_KP = self._ids(len(updates_KP)), (self._past(state, updates_KP) + updates_KP).numpy()
        old_ids = state.get("client_ids", np.empty(0, np.int64))
        kept = ~np.isin(old_ids, ids_K)
        old_sums = state.get("sums", np.empty((0, sums_KP.shape[1]), np.float32))[kept]
        ids, sums = np.concatenate([old_ids[kept], ids_K]), np.concatenate([old_sums, sums_KP])
        order = np.argsort(ids, kind="stable")
        return {"client_ids": ids[order], "sums": sums[order].astype(np.float32)}

    def _ids(self, k: int) -> np.ndarray:
        return np.arange(k) if self.client_ids_K is None else self.client_ids_K

    def _past(self, state: State, updates_KP: torch.Tensor) -> torch.Tensor:
        past_KP = torch.zeros_like(updates_KP)
        if "sums" in state:
            ids_K = self._ids(len(updates_KP))
            place_K = np.searchsorted(state["client_ids"], ids_K).clip(max=len(state["client_ids"]) - 1)
            known_K = state["client_ids"][place_K] == ids_K
            past_KP[torch.from_numpy(known_K)] = torch.from_numpy(state["sums"][place_K[known_K]]).to(past_KP.dtype)
        return past_KP


def _trust(cosines_KK: torch.Tensor) -> torch.Tensor:
    """[K] in 0 to 1, float64."""
    alike_KK = cosines_KK.fill_diagonal_(-1)
    most_K = alike_KK.max(dim=1).values
    top_K = torch.empty(len(most_K), dtype=torch.float64)
    for k, row_K in enumerate(alike_KK):
        pardon_K = torch.where(most_K > most_K[k], most_K[k] / most_K, torch.ones_like(most_K))
        top_K[k] = (row_K * pardon_K).max()
    weights_K = (1 - top_K).clamp(0, 1)
    if not weights_K.max() > 0:
        return weights_K
    weights_K = (weights_K / weights_K.max()).clamp(_EDGE, 1 - _EDGE)
    return ((weights_K / (1 - weights_K)).log() + 0.5).clamp(0, 1)
