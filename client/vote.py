"""The certified vote on a device: a recommendation from each group of the user's clicks, and what they agree on.

``fedquilt/certificate.py`` has the theorem. Shapes: U users, L clicks, S groups, I items.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedquilt.certificate import count_votes, item_groups, split_history
from fedquilt.device_defences import VoteConfig
from fedquilt.graphs.subgraph import Subgraphs
from models.contexts import graphs_of, scores_under
from models.kernel import KernelWeights

_CHUNK_FLOATS = 8_000_000  # scores held at once, about 64 MB


@dataclass(frozen=True, eq=False)
class Voter:
    """``num_clicked``: latest clicks of a group that make its subgraph; what the group leaves out are all of them."""

    weights: KernelWeights
    subgraphs: Callable[[np.ndarray], Subgraphs]
    num_clicked: int
    config: VoteConfig

    @property
    def order_I(self) -> np.ndarray:
        """int64 [I], a permutation: equal votes go to the item with the larger bias of the cloud, whoever asks."""
        first = np.argsort(-self.weights.item_bias.numpy(), kind="stable")
        order_I = np.empty(len(first), np.int64)
        order_I[first] = np.arange(len(first))
        return order_I

    def votes(self, histories_UL: np.ndarray, patch: Mapping[str, Tensor] | None) -> np.ndarray:
        """int64 [U, I]. Whole histories, latest first, -1 padded; one patch, the same for everybody, or None."""
        num_items, groups = self.weights.num_items, self.config.groups
        group_I = item_groups(num_items, groups, self.config.key)
        step = max(_CHUNK_FLOATS // (groups * num_items), 1)
        parts = [
            self._votes(split_history(histories_UL[start : start + step], group_I, groups), patch)
            for start in range(0, len(histories_UL), step)
        ]
        return np.concatenate([np.zeros((0, num_items), np.int64), *parts])

    def _votes(self, split_USL: np.ndarray, patch: Mapping[str, Tensor] | None) -> np.ndarray:
        contexts = split_USL[:, :, : self.num_clicked].reshape(-1, min(self.num_clicked, split_USL.shape[2]))
        with torch.no_grad():
            scores = scores_under(self.weights, graphs_of(self.subgraphs(contexts)), patch).numpy()
        return count_votes(scores.reshape(*split_USL.shape[:2], -1), split_USL, self.config.ballot)
