"""LightGCN (He et al. 2020, arXiv:2002.02126), with PyTorch Geometric's model."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch_geometric.nn.conv import LGConv
from torch_geometric.nn.models import LightGCN

from experiments.peers.interface import BestEpoch, Factored, StrictNegatives, Validate
from fedquilt.graphs.log import InteractionLog


class _SymmetricProduct(torch.autograd.Function):
    """A x for a sparse A = Aᵀ: the gradient is A times the gradient, where torch would transpose A in every step."""

    @staticmethod
    def forward(ctx: Any, adjacency: Tensor, x_ND: Tensor) -> Tensor:
        ctx.adjacency = adjacency
        return adjacency @ x_ND

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor]:
        return None, ctx.adjacency @ gradients[0]


class SymmetricLGConv(LGConv):
    """PyG's layer for an adjacency that is its own transpose."""

    def message_and_aggregate(self, adj_t: Tensor, x: Tensor) -> Tensor:
        return _SymmetricProduct.apply(adj_t, x)


def fit(
    train: InteractionLog,
    validate: Validate,
    seed: int,
    dim: int = 64,
    num_layers: int = 3,
    learning_rate: float = 5e-3,
    regularisation: float = 1e-4,
    batch_size: int = 8192,
    epochs: int = 150,
    patience: int = 10,
    judge_every: int = 1,
) -> Factored:
    """BPR on the mean of the layers' embeddings; every step propagates over the whole graph of training clicks."""
    generator = torch.Generator().manual_seed(seed)
    adjacency = normalised_adjacency(train)
    model = lightgcn(train, dim, num_layers, generator)
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    negatives = StrictNegatives(train, generator)
    users_C, items_C = torch.from_numpy(train.users_C).long(), torch.from_numpy(train.items_C).long()
    best = BestEpoch(validate, patience)
    for epoch in range(1, epochs + 1):
        negatives_C = negatives.draw(users_C)
        for batch in torch.randperm(len(users_C), generator=generator).split(batch_size):
            nodes = users_C[batch], train.num_users + items_C[batch], train.num_users + negatives_C[batch]
            optimizer.zero_grad()
            loss(model, adjacency, *nodes, regularisation).backward()
            optimizer.step()
        if epoch % judge_every == 0 and best.is_over(epoch, scores(model, adjacency, train.num_users)):
            break
    return best.result()


def lightgcn(train: InteractionLog, dim: int, num_layers: int, generator: torch.Generator) -> LightGCN:
    """PyG's model, with an adjacency that is normalised once and not in every step."""
    model = LightGCN(train.num_users + train.num_items, dim, num_layers)
    model.convs = nn.ModuleList([SymmetricLGConv(normalize=False) for _ in range(num_layers)])
    with torch.no_grad():
        model.embedding.weight.copy_(0.1 * torch.randn(model.embedding.weight.shape, generator=generator))
    return model


def normalised_adjacency(train: InteractionLog) -> Tensor:
    """D^-½ A D^-½ of the bipartite graph, sparse CSR [U + I, U + I]; users first. It is its own transpose."""
    items_C = train.num_users + train.items_C
    edges_2E = np.unique(np.stack([np.r_[train.users_C, items_C], np.r_[items_C, train.users_C]]), axis=1)
    num_nodes = train.num_users + train.num_items
    degree_N = np.bincount(edges_2E[0], minlength=num_nodes)
    weights_E = 1 / np.sqrt(degree_N[edges_2E[0]] * degree_N[edges_2E[1]])
    size = (num_nodes, num_nodes)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse")  # torch calls CSR beta, and says that it checks nothing
        return torch.sparse_coo_tensor(
            torch.from_numpy(edges_2E), torch.from_numpy(weights_E).float(), size
        ).to_sparse_csr()


def loss(
    model: LightGCN, adjacency: Tensor, users_B: Tensor, items_B: Tensor, negatives_B: Tensor, regularisation: float
) -> Tensor:
    """BPR, with the L2 penalty on the first layer's embeddings of the nodes in the batch, as in the paper."""
    out_ND = model.get_embedding(adjacency)
    difference_B = (out_ND[users_B] * (out_ND[items_B] - out_ND[negatives_B])).sum(1)
    first_BD = model.embedding.weight[torch.cat([users_B, items_B, negatives_B])]
    penalty = 0.5 * first_BD.square().sum() / len(users_B)
    return -nn.functional.logsigmoid(difference_B).mean() + regularisation * penalty


def scores(model: LightGCN, adjacency: Tensor, num_users: int) -> Factored:
    with torch.no_grad():
        out_ND = model.get_embedding(adjacency)
    return Factored(out_ND[:num_users], out_ND[num_users:], torch.zeros(len(out_ND) - num_users))
