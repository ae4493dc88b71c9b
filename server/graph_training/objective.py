"""The loss of a batch: which vectors are queries, positives and negatives, for batches of pairs and of users."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedquilt.config import GraphModelConfig
from models.convolutions.sparse_sum import gathered_sum
from models.graph_losses import Scores, max_margin, softmax, unsupervised
from server.graph_training.batches import Batch
from server.graph_training.user_batches import UserBatch


def batch_loss(
    config: GraphModelConfig, vectors_DF: Tensor, batch: Batch | UserBatch, user_map: nn.Module | None = None
) -> Tensor:
    """A scalar. With ``hard_share`` h > 0: (1 - h) · loss against shared + h · loss against hard negatives.

    Of users: q · loss of users' queries + (1 - q) · loss of single queries, q = ``query_users``.
    """
    if isinstance(batch, Batch):
        return _against(config, *_of_pairs(vectors_DF, batch), config.temperature)
    of_users, of_singles = _of_users(vectors_DF, batch, user_map)
    return config.query_users * _against(config, *of_users, config.user_temperature) + (
        1 - config.query_users
    ) * _against(config, *of_singles, config.temperature)


Parts = tuple[Scores, Scores, Scores]  # of positives, shared negatives, hard negatives


def _of_pairs(vectors_DF: Tensor, batch: Batch) -> Parts:
    queries_BF, items_BF = vectors_DF[batch.queries_B], vectors_DF[batch.items_B]
    positive_B1 = (queries_BF * items_BF).sum(1, keepdim=True)
    hard_BH = torch.einsum("bf,bhf->bh", queries_BF, vectors_DF[batch.hard_BH])
    return (
        Scores(positive_B1, torch.ones_like(positive_B1, dtype=torch.bool)),
        Scores(queries_BF @ vectors_DF[batch.shared_M].T, batch.shared_counts_BM),
        Scores(hard_BH, batch.hard_counts_BH),
    )


def _of_users(vectors_DF: Tensor, batch: UserBatch, user_map: nn.Module | None) -> tuple[Parts, Parts]:
    """Of users' queries [B, ...], and of single queries [B · Q, ...]."""
    clicked_BAF, hard_BQHF = vectors_DF[batch.clicked_BA], vectors_DF[batch.hard_BQH]
    shared_MF, counts_BM, hard_counts_BQH = vectors_DF[batch.shared_M], batch.shared_counts_BM, batch.hard_counts_BQH
    asked_BQF = torch.take_along_dim(clicked_BAF, batch.asked_BQ[:, :, None], dim=1)
    mapped = user_map if user_map is not None else nn.Identity()
    users_BF = mapped(gathered_sum(vectors_DF, batch.clicked_BA, batch.weights_BA))
    itself_D = (vectors_DF * mapped(vectors_DF)).sum(1)
    of_users = (
        _without_itself(torch.einsum("bf,baf->ba", users_BF, clicked_BAF), itself_D, batch),
        Scores(users_BF @ shared_MF.T, counts_BM),
        Scores(torch.einsum("bf,bqhf->bqh", users_BF, hard_BQHF).flatten(1), hard_counts_BQH.flatten(1)),
    )
    of_singles = (
        _others(torch.einsum("bqf,baf->bqa", asked_BQF, clicked_BAF), batch),
        Scores((asked_BQF @ shared_MF.T).flatten(0, 1), counts_BM.repeat_interleave(asked_BQF.shape[1], 0)),
        Scores(torch.einsum("bqf,bqhf->bqh", asked_BQF, hard_BQHF).flatten(0, 1), hard_counts_BQH.flatten(0, 1)),
    )
    return of_users, of_singles


def _without_itself(scores_BA: Tensor, itself_D: Tensor, batch: UserBatch) -> Scores:
    """z_a · U (sum_b w_b z_b - w_a z_a) / (1 - w_a): a click against the mean of the others."""
    several_B1 = batch.clicked_counts_BA.sum(1, keepdim=True) > 1
    rest_BA = torch.where(several_B1, 1 - batch.weights_BA, 1).clamp(min=1e-6)  # a decay near 0 rounds to 0
    scores_BA = (scores_BA - batch.weights_BA * itself_D[batch.clicked_BA]) / rest_BA
    return Scores(scores_BA, batch.clicked_counts_BA & several_B1)


def _others(scores_BQA: Tensor, batch: UserBatch) -> Scores:
    """A single query's positives: the row's other clicks."""
    counts_BA, asked_BQ = batch.clicked_counts_BA, batch.asked_BQ
    counts_BQA = counts_BA[:, None] & counts_BA.gather(1, asked_BQ)[:, :, None]
    counts_BQA = counts_BQA.scatter(2, asked_BQ[:, :, None], False)
    return Scores(scores_BQA.flatten(0, 1), counts_BQA.flatten(0, 1))


def _against(config: GraphModelConfig, positive: Scores, shared: Scores, hard: Scores, temperature: float) -> Tensor:
    def loss(negative: Scores) -> Tensor:
        if config.loss == "unsupervised":
            return unsupervised(positive, negative)
        if config.loss == "softmax":
            return softmax(positive, negative, temperature)
        return max_margin(positive, negative, config.margin)

    if not config.hard_share or not hard.values.shape[1]:
        return loss(shared.beside(hard))
    return (1 - config.hard_share) * loss(shared) + config.hard_share * loss(hard)
