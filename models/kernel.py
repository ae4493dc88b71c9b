"""The device's graph kernel: two graph convolutions over the local subgraph, a readout, a scoring head.

Functional, with the user axis always there: base weights are shared and frozen, patch tensors have one row per user.
Without a patch (the flag is off) no patch term is computed, so scores equal the base model's bit for bit.

    x_v   = item_vectors[v] (+ in_factors[v] · in_basis)                    nodes, [U, G, N, F]
    h1    = x + tanh(Â x W_0),    then h1 + tanh(h1 · down_0) · up_0        Â: row-normalised edges
    h2    = h1 + tanh(Â h1 W_1)
    z_k   = sum_v softmax_v(pool_logits[k, recency_v]) h2_v                 K pools over the clicked nodes
    z_K   = mean of h2 over the neighbour nodes
    u     = [z_0 ... z_K] · mix,  then u + tanh(u · down_1) · up_1          [U, G, F]
    s_i   = u · (item_vectors[i] + out_factors[i] · out_basis) + item_bias[i]
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from fedquilt.types import Cohort

NUM_LAYERS = 2
POOL_SCALES = (float("inf"), 10.0, 2.0)  # clicks after which a pool's weight has fallen to 1/e, before training
_FAR = -1e9
_TINY = 1e-12


@dataclass(frozen=True)
class KernelWeights:
    """item_vectors [I, F], item_bias [I], convolution [2, F, F], pool_logits [K, D], mix [(K + 1) · F, F]."""

    item_vectors: Tensor
    item_bias: Tensor
    convolution: Tensor
    pool_logits: Tensor
    mix: Tensor

    @property
    def dim(self) -> int:
        return self.item_vectors.shape[1]

    @property
    def num_items(self) -> int:
        return self.item_vectors.shape[0]

    @property
    def num_kernel_parameters(self) -> int:
        """What lies on the device for good; item vectors travel with recommendations."""
        return self.convolution.numel() + self.pool_logits.numel() + self.mix.numel()

    def arrays(self) -> dict[str, np.ndarray]:
        return {field.name: getattr(self, field.name).detach().cpu().numpy() for field in fields(self)}

    @classmethod
    def of(cls, arrays: Mapping[str, np.ndarray]) -> KernelWeights:
        return cls(*(torch.from_numpy(np.array(arrays[field.name], np.float32)) for field in fields(cls)))


def initial_kernel(dim: int, num_recencies: int) -> dict[str, Tensor]:
    """Kernel weights before any training: no convolution, exponential recency pools, their plain average as the
    user.
    """
    recency_D = torch.arange(num_recencies, dtype=torch.float32)
    pools = len(POOL_SCALES)
    mix = torch.cat([torch.eye(dim) / pools] * pools + [torch.zeros(dim, dim)])
    return {
        "convolution": torch.zeros(NUM_LAYERS, dim, dim),
        "pool_logits": torch.stack([-recency_D / scale for scale in POOL_SCALES]),
        "mix": mix,
    }


@dataclass(frozen=True)
class Graphs:
    """A cohort's subgraphs as tensors: nodes [U, G·N], recency [U, G, N], masks, row-normalised adjacency [U·G, N,
    N].
    """

    nodes: Tensor
    recency: Tensor
    clicked: Tensor
    neighbour: Tensor
    adjacency: Tensor

    @classmethod
    def of(cls, cohort: Cohort) -> Graphs:
        num_users, _, num_nodes = cohort.nodes_UGN.shape
        recency = torch.from_numpy(cohort.recency_UGN).long()
        mask = torch.from_numpy(cohort.node_mask_UGN)
        edges = torch.from_numpy(cohort.edges_UGNN).view(-1, num_nodes, num_nodes)
        return cls(
            nodes=torch.from_numpy(cohort.nodes_UGN).long().view(num_users, -1),
            recency=recency,
            clicked=mask & (recency >= 0),
            neighbour=mask & (recency < 0),
            adjacency=edges / edges.sum(-1, keepdim=True).clamp(min=_TINY),
        )

    def __getitem__(self, graphs: slice) -> Graphs:
        num_users, num_graphs, num_nodes = self.recency.shape
        nodes = self.nodes.view(num_users, num_graphs, num_nodes)[:, graphs].reshape(num_users, -1)
        adjacency = self.adjacency.view(num_users, num_graphs, num_nodes, num_nodes)[:, graphs]
        return Graphs(
            nodes,
            self.recency[:, graphs],
            self.clicked[:, graphs],
            self.neighbour[:, graphs],
            adjacency.reshape(-1, num_nodes, num_nodes),
        )


PatchTensors = Mapping[str, Tensor]  # each [U, *shape]


def user_vectors(weights: KernelWeights, graphs: Graphs, patch: PatchTensors | None = None) -> Tensor:
    """-> [U, G, F].

    The first bottleneck stays factored, by associativity: what follows h1 + c · up_0 with c = tanh(h1 · down_0) is
    Â h1 W_1 + (Â c)(up_0 W_1) and pools h1 + (pools c) up_0. Terms of h1 alone are constants of most patches, and
    gradients flow through c, which is narrow.
    """
    patch = patch or {}
    num_users, num_graphs, num_nodes = graphs.recency.shape
    pools = _pools(weights, graphs, patch.get("readout.pool_logits")).view(num_users * num_graphs, -1, num_nodes)
    hidden = _item_rows(weights, graphs.nodes, patch, "item_in")
    before = _linear(_per_graph(graphs.adjacency, hidden), weights.convolution[0], patch.get("convolution.0"))
    hidden = before.tanh_() + hidden  # in place: fresh memory costs more than the arithmetic
    before = _linear(_per_graph(graphs.adjacency, hidden), weights.convolution[1], patch.get("convolution.1"))
    pooled = _per_graph(pools, hidden)
    if "bottleneck.0.down" in patch:
        up = patch["bottleneck.0.up"]
        coded = torch.bmm(hidden, patch["bottleneck.0.down"]).tanh_()
        spread = _linear(up, weights.convolution[1], patch.get("convolution.1"))
        before = torch.bmm(_per_graph(graphs.adjacency, coded), spread).add_(before)
        pooled = torch.bmm(_per_graph(pools, coded), up).add_(pooled)
    pooled = _per_graph(pools, before.tanh_()).add_(pooled)
    user = _linear(pooled.view(num_users, num_graphs, -1), weights.mix, patch.get("readout.mix"))
    if "bottleneck.1.down" not in patch:
        return user
    return user + _few_rows(torch.tanh(_few_rows(user, patch["bottleneck.1.down"])), patch["bottleneck.1.up"])


def all_scores(weights: KernelWeights, users: Tensor, patch: PatchTensors | None = None) -> Tensor:
    """users [U, G, F] -> scores of every item, [U, G, I]."""
    patch = patch or {}
    scores = users @ weights.item_vectors.T
    if "item_out.factors" in patch:
        coded = torch.bmm(users, patch["item_out.basis"].transpose(1, 2))
        scores = scores + torch.bmm(coded, patch["item_out.factors"].transpose(1, 2))
    bias = weights.item_bias
    return scores + (bias + patch["item_bias"][:, None] if "item_bias" in patch else bias)


def scores_of(weights: KernelWeights, users: Tensor, items: Tensor, patch: PatchTensors | None = None) -> Tensor:
    """users [U, G, F], items [U, G, X] -> their scores, [U, G, X]."""
    patch = patch or {}
    num_users, num_graphs, num_items = items.shape
    flat = items.reshape(num_users, -1)
    rows = _item_rows(weights, flat, patch, "item_out").view(num_users * num_graphs, num_items, -1)
    scores = torch.bmm(users.reshape(num_users * num_graphs, 1, -1), rows.transpose(1, 2)).view_as(items)
    scores = scores + weights.item_bias[items]
    return scores + patch["item_bias"].gather(1, flat).view_as(items) if "item_bias" in patch else scores


def _item_rows(weights: KernelWeights, items: Tensor, patch: PatchTensors, side: str) -> Tensor:
    """items [U, X] -> vectors [U, X, F], with the low-rank patch of this side."""
    rows = torch.nn.functional.embedding(items, weights.item_vectors)
    if f"{side}.factors" not in patch:
        return rows
    factors = patch[f"{side}.factors"]
    picked = factors.gather(1, items[:, :, None].expand(-1, -1, factors.shape[2]))
    return torch.baddbmm(rows, picked, patch[f"{side}.basis"])


def _linear(x: Tensor, weight: Tensor, patch: Tensor | None) -> Tensor:
    """x [U, X, A] · (weight [A, B] + patch [U, A, B])."""
    out = x @ weight
    return out if patch is None else torch.bmm(x, patch).add_(out)


def _per_graph(matrices: Tensor, x: Tensor) -> Tensor:
    """matrices [U · G, M, N], x [U, G · N, B] -> their products, [U, G · M, B]."""
    out = torch.bmm(matrices, x.reshape(-1, matrices.shape[2], x.shape[2]))
    return out.view(len(x), -1, x.shape[2])


def _few_rows(x: Tensor, patch: Tensor) -> Tensor:
    """x [U, G, A] · patch [U, A, B]. For G = 1 ``bmm`` is several times slower than a broadcast, most of all backward,
    where it makes outer products.
    """
    return (x.transpose(1, 2) * patch).sum(1, keepdim=True) if x.shape[1] == 1 else torch.bmm(x, patch)


def _pools(weights: KernelWeights, graphs: Graphs, patch: Tensor | None) -> Tensor:
    """-> weights of nodes [U, G, K + 1, N], a pool over no node is zero."""
    num_users, num_graphs, num_nodes = graphs.recency.shape
    recency = graphs.recency.clamp(min=0)
    if patch is None:
        logits = weights.pool_logits[:, recency].permute(1, 2, 0, 3)  # [U, G, K, N]
    else:
        table = weights.pool_logits + patch  # [U, K, D]
        index = recency.view(num_users, 1, -1).expand(-1, table.shape[1], -1)
        logits = table.gather(2, index).view(num_users, -1, num_graphs, num_nodes).transpose(1, 2)
    clicked = graphs.clicked[:, :, None]
    attention = torch.where(clicked, logits, _FAR).softmax(-1) * clicked
    neighbour = graphs.neighbour[:, :, None].float()
    average = neighbour / neighbour.sum(-1, keepdim=True).clamp(min=1)
    return torch.cat([attention, average], dim=2)
