"""The yardstick: every peer is judged here, on validation clicks while it is chosen and on test clicks once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np

from experiments.peers.interface import Scores
from fedquilt import metrics
from fedquilt.graphs.splits import HeldOut, Split
from server.evaluate import Part, num_candidates, seen_items

SELECTION = ("HR@10", "NDCG@10")  # their sum on validation clicks chooses epochs and hyper-parameters


def counts(scores_HI: np.ndarray, split: Split, part: Part) -> metrics.Counts:
    """Rank counts of the part's held-out clicks from their users' scores, row h for click h.

    Candidates are those of fedquilt itself, by its own function. With frozen negatives (loo99): the click and those.
    Without (loo-full): all items but the user's training clicks and, in the test, validation clicks.
    """
    held_out = held_out_of(split, part)
    if held_out.negatives_HM is None:
        seen_HI = np.zeros(scores_HI.shape, bool)
        seen_HI[metrics.ragged(*seen_items(split, part), held_out.users_H)] = True
        return metrics.rank_counts(scores_HI, held_out.items_H, seen=seen_HI)
    rows_H = np.arange(len(held_out))
    return metrics.rank_counts_sampled(
        scores_HI[rows_H, held_out.items_H], scores_HI[rows_H[:, None], held_out.negatives_HM]
    )


def held_out_of(split: Split, part: Part) -> HeldOut:
    return split.valid if part == "valid" else split.test


def per_user(scores: Scores, split: Split, part: Part, ks: Sequence[int] = (5, 10, 20)) -> dict[str, np.ndarray]:
    """{"HR@10": [H], ...}, one value for each held-out click."""
    return metrics.ranking_metrics(*counts(scores(held_out_of(split, part).users_H), split, part), ks)


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
    values = per_user(scores, split, "valid", (10,))
    return float(sum(values[name].mean() for name in SELECTION))


def require_honest(split: Split) -> None:
    """Before any number is printed: scores that say nothing must sit at chance. Errors: MetricError."""
    parts: tuple[Part, ...] = ("valid", "test")
    for part in parts:
        shape = len(held_out_of(split, part)), split.train.num_items
        metrics.canary(partial(counts, split=split, part=part), shape, num_candidates(split, part))
