"""GraphSAGE with the pooling aggregators, max and mean (Hamilton et al. 2017, arXiv:1706.02216, equation 3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.convolutions import CONVOLUTIONS
from models.convolutions.base import Convolution, gathered_weighted_mean, is_real, unit_rows, weighted_mean


class _SagePool(Convolution):
    """h_u <- unit( ReLU( W [h_u ; pool_v ReLU(W_pool h_v + b)] ) )."""

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int):
        super().__init__(in_dim, out_dim, message_dim=hidden_dim)
        self.to_pool = nn.Linear(in_dim, hidden_dim)
        self.combine = nn.Linear(in_dim + hidden_dim, out_dim, bias=False)

    def project(self, h_NF: Tensor) -> Tensor:
        return torch.relu(self.to_pool(h_NF))

    def update(self, h_DF: Tensor, pooled_DM: Tensor, weights_DT: Tensor) -> Tensor:
        return unit_rows(torch.relu(self.combine(torch.cat([h_DF, pooled_DM], dim=1))))


@CONVOLUTIONS.register("sage-max-pool")
class SageMaxPool(_SagePool):
    """The elementwise largest message."""

    def pool(self, m_DTM: Tensor, weights_DT: Tensor) -> Tensor:
        # Messages come out of a ReLU, so that 0 is below or equal to all of them.
        return torch.where(weights_DT[..., None] > 0, m_DTM, 0).amax(1)


@CONVOLUTIONS.register("sage-mean-pool")
class SageMeanPool(_SagePool):
    """The mean message."""

    def pool(self, m_DTM: Tensor, weights_DT: Tensor) -> Tensor:
        return weighted_mean(m_DTM, is_real(weights_DT, m_DTM))

    def gather_and_pool(self, m_NM: Tensor, neighbours_DT: Tensor, weights_DT: Tensor) -> Tensor:
        return gathered_weighted_mean(m_NM, neighbours_DT, is_real(weights_DT, m_NM))
