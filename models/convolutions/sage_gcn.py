"""GraphSAGE with the GCN aggregator (Hamilton et al. 2017, arXiv:1706.02216, equation 2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.convolutions import CONVOLUTIONS
from models.convolutions.base import Convolution, gathered_weighted_mean, is_real, unit_rows, weighted_mean


@CONVOLUTIONS.register("sage-gcn")
class SageGcn(Convolution):
    """h_u <- unit( ReLU( W mean of {h_u} and all h_v ) ): no concatenation; ``hidden_dim`` is not used."""

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int):
        super().__init__(in_dim, out_dim, message_dim=in_dim)
        self.combine = nn.Linear(in_dim, out_dim, bias=False)

    def pool(self, m_DTM: Tensor, weights_DT: Tensor) -> Tensor:
        return weighted_mean(m_DTM, is_real(weights_DT, m_DTM))

    def gather_and_pool(self, m_NM: Tensor, neighbours_DT: Tensor, weights_DT: Tensor) -> Tensor:
        return gathered_weighted_mean(m_NM, neighbours_DT, is_real(weights_DT, m_NM))

    def update(self, h_DF: Tensor, pooled_DM: Tensor, weights_DT: Tensor) -> Tensor:
        degrees_D1 = is_real(weights_DT, h_DF).sum(1, keepdim=True)
        mean_DF = (h_DF + degrees_D1 * pooled_DM) / (degrees_D1 + 1)
        return unit_rows(torch.relu(self.combine(mean_DF)))
