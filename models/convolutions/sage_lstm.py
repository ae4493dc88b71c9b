"""GraphSAGE with the LSTM aggregator (Hamilton et al. 2017, arXiv:1706.02216, section 3.3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.convolutions import CONVOLUTIONS
from models.convolutions.base import Convolution, unit_rows


@CONVOLUTIONS.register("sage-lstm")
class SageLstm(Convolution):
    """h_u <- unit( ReLU( W [h_u ; LSTM(h_v1, h_v2, ...)] ) ): the state after a row's last neighbour.

    A set has no order: the paper reads a random permutation. Here neighbours are read as the row lists them, and
    ``permuted_rows`` shuffles rows with a generator that the caller passes.
    """

    reads_order = True

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int):
        super().__init__(in_dim, out_dim, message_dim=in_dim)
        self.lstm = nn.LSTM(in_dim, hidden_dim, batch_first=True)
        self.combine = nn.Linear(in_dim + hidden_dim, out_dim, bias=False)

    def pool(self, m_DTM: Tensor, weights_DT: Tensor) -> Tensor:
        """-> the LSTM's state, [D, hidden_dim]."""
        real_DT = weights_DT > 0
        real_first_DT = torch.argsort(real_DT.int(), dim=1, descending=True, stable=True)
        ordered_DTM = m_DTM.take_along_dim(real_first_DT[..., None], dim=1)
        # Padding comes after the state that is read, so it cannot change it.
        states_DTH, _ = self.lstm(ordered_DTM)
        lengths_D = real_DT.sum(1)
        last_D11 = (lengths_D - 1).clamp(min=0)[:, None, None]
        state_DH = states_DTH.take_along_dim(last_D11, dim=1).squeeze(1)
        return torch.where(lengths_D[:, None] > 0, state_DH, 0)

    def update(self, h_DF: Tensor, pooled_DM: Tensor, weights_DT: Tensor) -> Tensor:
        return unit_rows(torch.relu(self.combine(torch.cat([h_DF, pooled_DM], dim=1))))


def permuted_rows(neighbours_DT: Tensor, weights_DT: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Every row in its own random order, padding anywhere; ``generator`` on the CPU."""
    keys_DT = torch.rand(weights_DT.shape, generator=generator).to(weights_DT.device)
    order_DT = keys_DT.argsort(1)
    return neighbours_DT.take_along_dim(order_DT, 1), weights_DT.take_along_dim(order_DT, 1)
