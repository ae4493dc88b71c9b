"""What all convolutions share: three stages, so that inference can map each item once and reduce by neighbour.

m_v = project(h_v)                        once a source
p_u = pool over u's neighbours v of m_v   weight 0 is padding
h_u <- update(h_u, p_u)
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from models.convolutions.sparse_sum import gathered_sum


class Convolution(nn.Module, ABC):
    """[N, in_dim] -> [D, out_dim]; the D targets are the first D of the N sources.

    ``message_dim`` is M, the width of what ``project`` gives. A target without neighbours pools to zeros.
    ``reads_order``: whether the order of a row's neighbours matters.
    """

    reads_order = False

    def __init__(self, in_dim: int, out_dim: int, message_dim: int):
        super().__init__()
        self.in_dim, self.out_dim, self.message_dim = in_dim, out_dim, message_dim

    def project(self, h_NF: Tensor) -> Tensor:
        """-> m [N, M]; row by row."""
        return h_NF

    @abstractmethod
    def pool(self, m_DTM: Tensor, weights_DT: Tensor) -> Tensor:
        """-> [D, M]; places of weight 0 do not count."""

    @abstractmethod
    def update(self, h_DF: Tensor, pooled_DM: Tensor, weights_DT: Tensor) -> Tensor:
        """-> [D, out_dim]; row by row."""

    def gather_and_pool(self, m_NM: Tensor, neighbours_DT: Tensor, weights_DT: Tensor) -> Tensor:
        """``pool(m_NM[neighbours_DT], weights_DT)``; overridden where [D, T, M] need not be held."""
        return self.pool(m_NM[neighbours_DT], weights_DT)

    def forward(self, h_NF: Tensor, neighbours_DT: Tensor, weights_DT: Tensor) -> Tensor:
        pooled_DM = self.gather_and_pool(self.project(h_NF), neighbours_DT, weights_DT)
        return self.update(h_NF[: len(neighbours_DT)], pooled_DM, weights_DT)


def weighted_mean(m_DTM: Tensor, weights_DT: Tensor) -> Tensor:
    """sum_t w_t m_t / sum_t w_t -> [D, M]; zeros where all weights are 0."""
    return torch.einsum("dtm,dt->dm", m_DTM, shares(weights_DT))


def gathered_weighted_mean(m_NM: Tensor, neighbours_DT: Tensor, weights_DT: Tensor) -> Tensor:
    """``weighted_mean(m_NM[neighbours_DT], weights_DT)`` without holding [D, T, M]."""
    return gathered_sum(m_NM, neighbours_DT, shares(weights_DT).to(m_NM.dtype))


def shares(weights_DT: Tensor) -> Tensor:
    """Rows scaled to sum 1; a row of zeros stays."""
    total_D1 = weights_DT.sum(1, keepdim=True)
    return weights_DT / torch.where(total_D1 > 0, total_D1, 1)


def is_real(weights_DT: Tensor, like: Tensor) -> Tensor:
    """1 for a neighbour, 0 for padding, in ``like``'s type."""
    return (weights_DT > 0).to(like.dtype)


def unit_rows(h_DF: Tensor) -> Tensor:
    """h / ||h||_2; a row of zeros stays, with gradient 0."""
    squares_D1 = h_DF.square().sum(1, keepdim=True)
    positive = squares_D1 > 0
    return torch.where(positive, h_DF / torch.where(positive, squares_D1, 1).sqrt(), 0)
