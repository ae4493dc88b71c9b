"""A cap on the users of one supernode: who runs the machine that hosts them may speak for all of them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from fedquilt.seeds import generator_for
from strategies.rules import PRE_RULES, RoundContext, missing, require_count, require_users


@PRE_RULES.register("supernode-cap")
@dataclass(frozen=True)
class SupernodeCap:
    """At most ``max_users`` rows of each supernode, drawn anew every round; weights are scaled to sum to 1.  O(K·P).

    MissingContextError where it is not known which supernode sent a row.
    """

    max_users: int = 100

    source = "fedquilt"
    cost = "K·P"
    draws = scale = translation = True

    def __post_init__(self) -> None:
        require_count("max_users", self.max_users, least=1)

    def __call__(
        self, updates_KP: torch.Tensor, weights_K: torch.Tensor, context: RoundContext
    ) -> tuple[torch.Tensor, torch.Tensor, RoundContext]:
        require_users(self, updates_KP)
        if context.nodes_K is None:
            raise missing(
                self,
                "the supernode of every row",
                "put it before bucketing and mixing, and run it in a federation",
            )
        kept = self._kept(context.nodes_K, generator_for(context.run_seed, context.round_, 0, "supernode-cap"))
        if len(kept) == len(updates_KP):
            return updates_KP, weights_K, context
        weights = weights_K[kept]
        ids_K = None if context.client_ids_K is None else context.client_ids_K[kept]
        fewer = replace(context, client_ids_K=ids_K, nodes_K=context.nodes_K[kept])
        return updates_KP[torch.from_numpy(kept)], weights / weights.sum(), fewer

    def _kept(self, nodes_K: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """Indices, in order. The draw for one node does not depend on the others' ids, only on their order."""
        kept = []
        for node in np.unique(nodes_K):
            rows = np.flatnonzero(nodes_K == node)
            kept.append(generator.choice(rows, min(self.max_users, len(rows)), replace=False))
        return np.sort(np.concatenate(kept))
