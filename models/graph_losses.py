"""Losses of the graph model: PinSage's max-margin, GraphSAGE's unsupervised loss, and supervised ones.

B rows: a query and an item that belong together. Negatives are M items shared by all rows, and H hard ones of each
row. ``counts`` says which negatives count for which row: ``not_in_pair`` makes it from ids.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, logsigmoid

from fedquilt.errors import DataError


def not_in_pair(negatives: Tensor, queries_B: Tensor, items_B: Tensor) -> Tensor:
    """bool [B, M] for shared ids [M], [B, H] for hard ids [B, H]: False for a row's own query or item, and for -1."""
    rows = negatives if negatives.dim() == 2 else negatives[None]
    return (rows != queries_B[:, None]) & (rows != items_B[:, None]) & (rows >= 0)


def max_margin(
    queries_BF: Tensor,
    items_BF: Tensor,
    margin: float,
    shared_MF: Tensor | None = None,
    hard_BHF: Tensor | None = None,
    shared_counts_BM: Tensor | None = None,
    hard_counts_BH: Tensor | None = None,
) -> Tensor:
    """Mean over rows of E_n max(0, z_q · z_n - z_q · z_i + margin), a scalar (Ying et al. 2018, equation 1).

    The expectation runs over all negatives that count for the row, shared and hard alike; a row without any costs 0.
    """
    scores_BN, counts_BN = _negatives(queries_BF, shared_MF, hard_BHF, shared_counts_BM, hard_counts_BH)
    hinge_BN = torch.relu(scores_BN - _positive(queries_BF, items_BF)[:, None] + margin)
    return _row_means(hinge_BN, counts_BN).mean()


def unsupervised(
    queries_BF: Tensor,
    items_BF: Tensor,
    shared_MF: Tensor | None = None,
    hard_BHF: Tensor | None = None,
    shared_counts_BM: Tensor | None = None,
    hard_counts_BH: Tensor | None = None,
    Q: float = 20.0,
) -> Tensor:
    """Mean over rows of -log sigma(z_u · z_v) - Q E_n log sigma(-z_u · z_n), a scalar (Hamilton et al. 2017, eq. 1).

    u and v co-occur on a random walk; the expectation runs over the negatives that count for the row. Q = 20 is the
    paper's number of negatives.
    """
    scores_BN, counts_BN = _negatives(queries_BF, shared_MF, hard_BHF, shared_counts_BM, hard_counts_BH)
    pushed_B = _row_means(logsigmoid(-scores_BN), counts_BN)
    return -(logsigmoid(_positive(queries_BF, items_BF)) + Q * pushed_B).mean()


def softmax(
    queries_BF: Tensor,
    items_BF: Tensor,
    temperature: float,
    shared_MF: Tensor | None = None,
    hard_BHF: Tensor | None = None,
    shared_counts_BM: Tensor | None = None,
    hard_counts_BH: Tensor | None = None,
) -> Tensor:
    """Mean over rows of -log( e^(s_i / t) / (e^(s_i / t) + sum_n e^(s_n / t)) ), s = z_q · z, a scalar.

    The sampled softmax (Jean et al. 2015, arXiv:1412.2007) over the negatives that count for the row; evenly drawn ones
    need no correction.
    """
    scores_BN, counts_BN = _negatives(queries_BF, shared_MF, hard_BHF, shared_counts_BM, hard_counts_BH)
    among_BN = scores_BN.masked_fill(~counts_BN, -torch.inf)
    logits = torch.cat([_positive(queries_BF, items_BF)[:, None], among_BN], dim=1) / temperature
    return cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=logits.device))


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


def _positive(queries_BF: Tensor, items_BF: Tensor) -> Tensor:
    return (queries_BF * items_BF).sum(1)


def _negatives(
    queries_BF: Tensor,
    shared_MF: Tensor | None,
    hard_BHF: Tensor | None,
    shared_counts_BM: Tensor | None,
    hard_counts_BH: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Scores of all negatives against the queries, and which count: both [B, M + H]."""
    scores, counts = [], []
    if shared_MF is not None:
        scores.append(queries_BF @ shared_MF.T)
        counts.append(_counts(scores[-1], shared_counts_BM))
    if hard_BHF is not None:
        scores.append(torch.einsum("bf,bhf->bh", queries_BF, hard_BHF))
        counts.append(_counts(scores[-1], hard_counts_BH))
    if not scores:
        raise DataError("a loss against negatives needs shared negatives, hard negatives or both; got neither")
    return torch.cat(scores, dim=1), torch.cat(counts, dim=1)


def _counts(scores: Tensor, counts: Tensor | None) -> Tensor:
    if counts is None:
        return torch.ones_like(scores, dtype=torch.bool)
    if counts.shape != scores.shape:
        raise DataError(f"counts {tuple(counts.shape)} do not fit negatives: expected {tuple(scores.shape)}")
    return counts


def _row_means(values_BN: Tensor, counts_BN: Tensor) -> Tensor:
    """Means over what counts -> [B]; 0 where nothing does."""
    return torch.where(counts_BN, values_BN, 0).sum(1) / counts_BN.sum(1).clamp(min=1)
