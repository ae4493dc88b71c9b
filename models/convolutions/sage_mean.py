"""GraphSAGE with the mean aggregator (Hamilton et al. 2017, arXiv:1706.02216, algorithm 1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.convolutions import CONVOLUTIONS
from models.convolutions.base import Convolution, gathered_weighted_mean, is_real, unit_rows, weighted_mean


@CONVOLUTIONS.register("sage-mean")
class SageMean(Convolution):
    """h_u <- unit( ReLU( W [h_u ; mean_v h_v] ) ), every neighbour alike; ``hidden_dim`` is not used."""

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int):
        super().__init__(in_dim, out_dim, message_dim=in_dim)
        self.combine = nn.Linear(2 * in_dim, out_dim, bias=False)

    def pool(self, m_DTM: Tensor, weights_DT: Tensor) -> Tensor:
        return weighted_mean(m_DTM, is_real(weights_DT, m_DTM))

    def gather_and_pool(self, m_NM: Tensor, neighbours_DT: Tensor, weights_DT: Tensor) -> Tensor:
        return gathered_weighted_mean(m_NM, neighbours_DT, is_real(weights_DT, m_NM))

    def update(self, h_DF: Tensor, pooled_DM: Tensor, weights_DT: Tensor) -> Tensor:
        return unit_rows(torch.relu(self.combine(torch.cat([h_DF, pooled_DM], dim=1))))
