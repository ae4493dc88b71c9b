"""What a pre-rule that leaves rows out gives back."""

from __future__ import annotations

from dataclasses import replace

import torch

from strategies.rules import RoundContext


def only(
    kept: torch.Tensor, updates_KP: torch.Tensor, weights_K: torch.Tensor, context: RoundContext
) -> tuple[torch.Tensor, torch.Tensor, RoundContext]:
    """The rows at int64 ``kept``, their weights scaled to a sum of 1, and the context of these rows."""
    weights, chosen = weights_K[kept], kept.numpy()
    ids_K = None if context.client_ids_K is None else context.client_ids_K[chosen]
    nodes_K = None if context.nodes_K is None else context.nodes_K[chosen]
    return updates_KP[kept], weights / weights.sum(), replace(context, client_ids_K=ids_K, nodes_K=nodes_K)
