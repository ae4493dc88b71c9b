"""Losses of the graph model: PinSage's max-margin, GraphSAGE's unsupervised loss, and supervised ones.

B rows: a query with its positives, the items that belong to it, and its negatives; ``Scores`` says which of these count
for the row. ``not_in_pair`` makes that from ids.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, logsigmoid, softplus

from fedquilt.errors import DataError


def not_in_pair(negatives: Tensor, queries_B: Tensor, items_B: Tensor) -> Tensor:
    """bool [B, M] for shared ids [M], [B, H] for hard ids [B, H]: False for a row's own query or item, and for -1."""
    rows = negatives if negatives.dim() == 2 else negatives[None]
    return (rows != queries_B[:, None]) & (rows != items_B[:, None]) & (rows >= 0)


@dataclass(frozen=True, eq=False)
class Scores:
    """values [B, N] of B queries with their items, and which of these count, bool [B, N]."""

    values: Tensor
    counts: Tensor

    def __post_init__(self) -> None:
        if self.counts.shape != self.values.shape:
            raise DataError(f"counts {tuple(self.counts.shape)} do not fit scores {tuple(self.values.shape)}")

    def beside(self, other: Scores) -> Scores:
        return Scores(torch.cat([self.values, other.values], dim=1), torch.cat([self.counts, other.counts], dim=1))


def max_margin(positive: Scores, negative: Scores, margin: float) -> Tensor:
    """Mean over rows of E_i E_n max(0, z_q · z_n - z_q · z_i + margin), a scalar (Ying et al. 2018, equation 1).

    The expectations run over all positives and negatives that count for the row; a row without any costs 0. Sorted
    negatives and their running sums give all positives' hinges in B · (N + P) numbers; the plain sum takes B · N · P.
    """
    from_BP = positive.values - margin  # a negative above this costs
    highest_BN = negative.values.masked_fill(~negative.counts, -torch.inf).sort(dim=1, descending=True).values
    ends_B = negative.counts.sum(1, keepdim=True)
    sums_BN = torch.where(torch.arange(highest_BN.shape[1], device=ends_B.device) < ends_B, highest_BN, 0).cumsum(1)
    above_BP = torch.searchsorted(-highest_BN.detach(), -from_BP.detach())
    sums_BP = torch.cat([torch.zeros_like(sums_BN[:, :1]), sums_BN], dim=1).gather(1, above_BP)
    by_positive_BP = (sums_BP - above_BP * from_BP) / ends_B.clamp(min=1)
    return _row_means(by_positive_BP, positive.counts).mean()


def unsupervised(positive: Scores, negative: Scores, Q: float = 20.0) -> Tensor:
    """Mean over rows of -E_v log sigma(z_u · z_v) - Q E_n log sigma(-z_u · z_n), a scalar (Hamilton et al. 2017).

    u and v co-occur on a random walk; the expectations run over what counts for the row; a row without a
    positive costs 0. Q = 20 is the paper's number
    of negatives (equation 1).
    """
    pulled_B = _row_means(logsigmoid(positive.values), positive.counts)
    pushed_B = _row_means(logsigmoid(-negative.values), negative.counts) * positive.counts.any(1)
    return -(pulled_B + Q * pushed_B).mean()


def softmax(positive: Scores, negative: Scores, temperature: float) -> Tensor:
    """Mean over rows of -E_i log( e^(s_i / t) / (e^(s_i / t) + sum_n e^(s_n / t)) ), s = z_q · z, a scalar.

    The sampled softmax (Jean et al. 2015, arXiv:1412.2007) over the negatives that count for the row; evenly drawn ones
    need no correction. Positives of one row do not stand against each other.
    """
    among_BN = (negative.values / temperature).masked_fill(~negative.counts, -torch.inf)
    against_B1 = torch.logsumexp(torch.cat([among_BN, torch.full_like(among_BN[:, :1], _NOTHING)], 1), 1, keepdim=True)
    costs_BP = softplus(against_B1 - positive.values / temperature)
    return _row_means(costs_BP, positive.counts).mean()


_NOTHING = -1e9  # a row without negatives costs 0, with a finite gradient


def one_label(logits_BC: Tensor, labels_B: Tensor) -> Tensor:
    """Mean cross-entropy of rows with a label; label -1: the row does not count; no label at all costs 0."""
    if logits_BC.dim() != 2 or labels_B.shape != logits_BC.shape[:1]:
        raise DataError(f"labels {tuple(labels_B.shape)} do not fit logits {tuple(logits_BC.shape)}: one label a row")
    if (labels_B >= logits_BC.shape[1]).any():
        raise DataError(f"label {int(labels_B.max())}, but logits are for {logits_BC.shape[1]} classes")
    total = cross_entropy(logits_BC, labels_B, ignore_index=-1, reduction="sum")
    return total / (labels_B >= 0).sum().clamp(min=1)


def many_labels(logits_BC: Tensor, labels_BC: Tensor) -> Tensor:
    """Mean binary cross-entropy over rows and classes; labels 0 or 1."""
    if labels_BC.shape != logits_BC.shape:
        raise DataError(f"labels {tuple(labels_BC.shape)} do not fit logits {tuple(logits_BC.shape)}: 0 or 1 a class")
    return binary_cross_entropy_with_logits(logits_BC, labels_BC.to(logits_BC.dtype))


SUPERVISED: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {"cross-entropy": one_label, "multi-label": many_labels}


def _row_means(values_BN: Tensor, counts_BN: Tensor) -> Tensor:
    """Means over what counts -> [B]; 0 where nothing does."""
    return torch.where(counts_BN, values_BN, 0).sum(1) / counts_BN.sum(1).clamp(min=1)
