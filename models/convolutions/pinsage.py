"""PinSage's convolution with importance pooling (Ying et al. 2018, arXiv:1806.01973, algorithm 1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.convolutions import CONVOLUTIONS
from models.convolutions.base import Convolution, gathered_weighted_mean, is_real, unit_rows, weighted_mean


@CONVOLUTIONS.register("pinsage")
class PinSage(Convolution):
    """n_u = sum_v alpha_v ReLU(Q h_v + q) / sum_v alpha_v;  h_u <- unit( ReLU( W [h_u ; n_u] + w ) ).

    alpha: visit counts of random walks from u, scaled or not.
    """

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int):
        super().__init__(in_dim, out_dim, message_dim=hidden_dim)
        self.Q = nn.Linear(in_dim, hidden_dim)
        self.W = nn.Linear(in_dim + hidden_dim, out_dim)

    def project(self, h_NF: Tensor) -> Tensor:
        return torch.relu(self.Q(h_NF))

    def pool(self, m_DTM: Tensor, weights_DT: Tensor) -> Tensor:
        return weighted_mean(m_DTM, self._alpha(weights_DT, m_DTM))

    def gather_and_pool(self, m_NM: Tensor, neighbours_DT: Tensor, weights_DT: Tensor) -> Tensor:
        return gathered_weighted_mean(m_NM, neighbours_DT, self._alpha(weights_DT, m_NM))

    def update(self, h_DF: Tensor, pooled_DM: Tensor, weights_DT: Tensor) -> Tensor:
        return unit_rows(torch.relu(self.W(torch.cat([h_DF, pooled_DM], dim=1))))

    def _alpha(self, weights_DT: Tensor, like: Tensor) -> Tensor:
        return weights_DT.to(like.dtype)


@CONVOLUTIONS.register("pinsage-mean")
class PinSageMean(PinSage):
    """PinSage without importance pooling: every neighbour alike."""

    def _alpha(self, weights_DT: Tensor, like: Tensor) -> Tensor:
        return is_real(weights_DT, like)
