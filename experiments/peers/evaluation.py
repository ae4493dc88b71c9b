"""The yardstick: every peer is judged here, on validation clicks while it is chosen and on test clicks once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np

from experiments.peers.interface import Scores
from fedquilt import metrics
from fedquilt.graphs.log import InteractionLog
from fedquilt.graphs.splits import HeldOut, Split

SELECTION = ("HR@10", "NDCG@10")  # their sum on validation clicks chooses epochs and hyper-parameters


def counts(scores_HI: np.ndarray, held_out: HeldOut, train: InteractionLog) -> metrics.Counts:
    """Rank counts of held-out clicks from their users' scores, row h for click h.

    With frozen negatives (loo99) the candidates are the click and those; without (loo-full) all items that the user has
    not clicked in training.
    """
    if held_out.negatives_HM is None:
        by_user = metrics.ragged(train.offsets, train.items_C, held_out.users_H)
        seen_HI = np.zeros(scores_HI.shape, bool)
        seen_HI[by_user] = True
        return metrics.rank_counts(scores_HI, held_out.items_H, seen=seen_HI)
    rows_H = np.arange(len(held_out))
    return metrics.rank_counts_sampled(
        scores_HI[rows_H, held_out.items_H], scores_HI[rows_H[:, None], held_out.negatives_HM]
    )


def per_user(
    scores: Scores, held_out: HeldOut, train: InteractionLog, ks: Sequence[int] = (5, 10, 20)
) -> dict[str, np.ndarray]:
    """{"HR@10": [H], ...}, one value for each held-out click."""
    return metrics.ranking_metrics(*counts(scores(held_out.users_H), held_out, train), ks)


class Judge:
    """The callback that a peer gets; keeps the best scores that it saw for each protocol.

    The protocols share their training clicks, so one fit serves them all: each takes its own best epoch from it. The
    value returned counts improvements under any protocol, so that a fit stops early only when no protocol gains.
    """

    def __init__(self, splits: Mapping[str, Split]):
        if len({split.train.hash for split in splits.values()}) != 1:
            raise ValueError("one judge, one set of training clicks: these splits differ in theirs")
        self._splits = splits
        self._values = dict.fromkeys(splits, -math.inf)
        self._improvements = 0
        self.best: dict[str, Scores] = {}

    def __call__(self, scores: Scores) -> float:
        values = {name: selection(scores, split) for name, split in self._splits.items()}
        better = [name for name in values if values[name] > self._values[name]]
        for name in better:
            self._values[name], self.best[name] = values[name], scores
        self._improvements += bool(better)
        return self._improvements if better else -math.inf


def selection(scores: Scores, split: Split) -> float:
    """The sum of the ``SELECTION`` metrics on validation clicks."""
    values = per_user(scores, split.valid, split.train, (10,))
    return float(sum(values[name].mean() for name in SELECTION))


def require_honest(split: Split) -> None:
    """Before any number is printed: scores that say nothing must sit at chance. Errors: MetricError."""
    for held_out in (split.valid, split.test):
        count = partial(counts, held_out=held_out, train=split.train)
        metrics.canary(count, (len(held_out), split.train.num_items), _candidates(held_out, split))


def _candidates(held_out: HeldOut, split: Split) -> np.ndarray:
    if held_out.negatives_HM is not None:
        return np.full(len(held_out), 1 + held_out.negatives_HM.shape[1])
    offsets, items = split.train.offsets, split.train.items_C
    seen_H = [len(np.unique(items[offsets[user] : offsets[user + 1]])) for user in held_out.users_H]
    return split.train.num_items - np.array(seen_H)
