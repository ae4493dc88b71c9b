"""Weighted sums over neighbours whose backward pass is a sparse product.

P = A M with A [D, N] sparse, so the gradient of M is Aᵀ times that of P. torch's embedding bag is quick forward, but
backward it sorts all places again, which took a third of a training step.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor
from torch.nn.functional import embedding_bag


def gathered_sum(m_NM: Tensor, places_DT: Tensor, weights_DT: Tensor) -> Tensor:
    """sum_t weights[d, t] · m[places[d, t]] -> [D, M], without holding [D, T, M]."""
    if m_NM.device.type != "cpu" or weights_DT.requires_grad:
        return _bag(m_NM, places_DT, weights_DT)
    return _GatheredSum.apply(m_NM, places_DT, weights_DT)


def _bag(m_NM: Tensor, places_DT: Tensor, weights_DT: Tensor) -> Tensor:
    return embedding_bag(places_DT, m_NM, mode="sum", per_sample_weights=weights_DT.to(m_NM.dtype))


class _GatheredSum(torch.autograd.Function):
    """On the CPU, for constant weights."""

    @staticmethod
    def forward(ctx: Any, m_NM: Tensor, places_DT: Tensor, weights_DT: Tensor) -> Tensor:
        ctx.save_for_backward(places_DT, weights_DT)
        ctx.num_sources = len(m_NM)
        return _bag(m_NM, places_DT, weights_DT)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient_DM,) = gradients
        places_DT, weights_DT = ctx.saved_tensors
        rows, columns = places_DT.shape
        starts = np.arange(rows + 1, dtype=np.int32) * np.int32(columns)
        entries = weights_DT.to(gradient_DM.dtype).numpy().ravel(), places_DT.numpy().astype(np.int32).ravel(), starts
        sum_ND = sparse.csr_array(entries, shape=(rows, ctx.num_sources)).T.tocsr()
        return torch.from_numpy(sum_ND @ gradient_DM.contiguous().numpy()), None, None
