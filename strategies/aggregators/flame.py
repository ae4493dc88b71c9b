"""FLAME: cluster by angle, clip to the median norm (Nguyen et al. 2022, arXiv:2101.02281)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numba import njit

from strategies.distances import cosines
from strategies.rows import norms, weighted_sum
from strategies.rules import AGGREGATORS, State, require_users


@AGGREGATORS.register("flame")
@dataclass(frozen=True)
class Flame:
    """Mean of the users in the tightest cluster of more than half, each clipped to the median norm.  O(K²·P).

    The paper's HDBSCAN with a least cluster size of K/2 + 1 can find one cluster only: joining users in order of their
    cosine distance, it is the first component that is so large. The paper's noise is not added here: noise
    is the pipeline's, and accounted for.
    """

    source = "Nguyen et al. 2022, arXiv:2101.02281"
    cost = "K²·P"
    sensitivity = None
    breakdown = 0.5
    scale = True

    def __call__(self, updates_KP: torch.Tensor, weights_K: torch.Tensor, state: State) -> torch.Tensor:
        return weighted_sum(self.row_weights(updates_KP, weights_K, state), updates_KP)

    def row_weights(self, updates_KP: torch.Tensor, weights_K: torch.Tensor, state: State) -> torch.Tensor:
        k = require_users(self, updates_KP)
        near_KK = cosines(updates_KP).numpy()
        admitted_K = torch.from_numpy(_majority(near_KK, k // 2 + 1))
        norms_K = norms(updates_KP)
        bound = norms_K.quantile(0.5)
        clip_K = torch.where(norms_K > bound, bound / norms_K, torch.ones_like(norms_K))
        return admitted_K * clip_K / admitted_K.sum()


@njit(nogil=True, cache=True)
def _majority(near_KK, least):
    """Who is in the first single-linkage component of ``least`` users: Prim's tree, then its edges by length."""
    k_users = len(near_KK)
    best, parent = np.full(k_users, -2.0), np.zeros(k_users, np.int64)
    done = np.zeros(k_users, np.bool_)
    ends, lengths = np.empty((k_users - 1, 2), np.int64), np.empty(k_users - 1)
    at = 0
    done[0] = True
    for edge in range(k_users - 1):
        following = -1
        for j in range(k_users):
            if done[j]:
                continue
            if near_KK[at, j] > best[j]:
                best[j], parent[j] = near_KK[at, j], at
            if following < 0 or best[j] > best[following]:
                following = j
        ends[edge, 0], ends[edge, 1], lengths[edge] = parent[following], following, -best[following]
        done[following] = True
        at = following
    label, size = np.arange(k_users), np.ones(k_users, np.int64)
    for edge in np.argsort(lengths, kind="mergesort"):
        if size.max() >= least:
            break
        a, b = label[ends[edge, 0]], label[ends[edge, 1]]
        for j in range(k_users):
            if label[j] == b:
                label[j] = a
        size[a] += size[b]
        size[b] = 0
    return label == size.argmax()
