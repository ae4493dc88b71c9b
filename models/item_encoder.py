"""The cloud's item encoder: an id embedding and / or given features through an MLP, then graph convolutions.

    e_i = id_embedding_i + MLP(features_i)                       [I, F]
    h_i <- h_i + tanh( W [h_i ; sum_j alpha_ij h_j] + b )        importance pooling, alpha: visit counts, rows sum to 1

Importance pooling is PinSage's (Ying et al. 2018, arXiv:1806.01973); the residual form keeps isolated items unharmed.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ImportanceConv(nn.Module):
    """h [I, F], neighbours: sparse [I, I] whose rows sum to 1 or are empty -> [I, F]."""

    def __init__(self, dim: int):
        super().__init__()
        self.linear = nn.Linear(2 * dim, dim)
        nn.init.xavier_uniform_(self.linear.weight, gain=0.5)

    def forward(self, hidden: Tensor, neighbours: Tensor) -> Tensor:
        pooled = torch.sparse.mm(neighbours, hidden)
        return hidden + torch.tanh(self.linear(torch.cat([hidden, pooled], dim=1)))


class ItemEncoder(nn.Module):
    """features [I, D] or None. With neither ids nor features there is nothing to tell items apart, which is an
    error.
    """

    def __init__(
        self,
        num_items: int,
        dim: int,
        features: Tensor | None,
        use_ids: bool,
        hidden: int,
        num_layers: int,
        dropout: float,
    ):
        super().__init__()
        if features is None and not use_ids:
            raise ValueError("an item encoder needs ids, features or both")
        self.ids = nn.Embedding(num_items, dim) if use_ids else None
        if self.ids is not None:
            nn.init.normal_(self.ids.weight, std=0.1)
        self.register_buffer("features", features)
        self.mlp = None
        if features is not None:
            self.mlp = nn.Sequential(nn.Linear(features.shape[1], hidden), nn.ReLU(), nn.Linear(hidden, dim))
        self.convolutions = nn.ModuleList(ImportanceConv(dim) for _ in range(num_layers))
        self.dropout = nn.Dropout(dropout)

    def forward(self, neighbours: Tensor) -> Tensor:
        """-> item vectors [I, F]."""
        parts = []
        if self.ids is not None:
            parts.append(self.ids.weight)
        if self.mlp is not None:
            parts.append(self.mlp(self.features))
        hidden = self.dropout(torch.stack(parts).sum(0))
        for convolution in self.convolutions:
            hidden = convolution(hidden, neighbours)
        return hidden
