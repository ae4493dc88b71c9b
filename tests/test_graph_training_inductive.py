"""Items that training never saw get vectors from features and neighbours: what that is worth, and what it is not yet.

The bazaar's item features say much about an item. NDCG@10 of test clicks on held-out items, each tenth of the catalogue
held out in turn: among new items graph .337, features alone .314, popularity .264; among all items .078, .076 and .055.
So among all items the graph beats popularity clearly, and the features, which place a new item as high as an old one,
by next to nothing. The tests take two tenths. On real logs, whose features say less: experiments/pinsage.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fedquilt.config import parse
from fedquilt.graphs.datasets import load_split
from fedquilt.graphs.splits import HeldOut, Split
from fedquilt.metrics import ragged, rank_counts, ranking_metrics
from fedquilt.seeds import generator_for
from server.graph_training.judge import user_vectors
from server.graph_training.prepare import catalogue_of, prepare
from server.graph_training.trainer import fresh, train
from server.graph_training.vectors import all_vectors, map_of

USERS, ITEMS = 2000, 500
TENTHS = (0, 1)
MODEL = {
    "pairs": "users",
    "loss": "softmax",
    "temperature": 0.1,
    "user_pooling": "mean",
    "user_map": True,
    "skip": True,
    "user_clicks": 40,
    "batch_size": 128,
    "epochs": 10,
    "patience": 10,
    "learning_rate": 0.01,
    "dim": 32,
    "hidden": 64,
    "shared_negatives": 300,
    "hard_negatives": False,
    "num_producers": 0,
}


def config_of(**graph_model):
    return parse(
        {
            "data": {"num_users": USERS, "num_items": ITEMS, "mean_clicks": 40},
            "split": {"cloud_share": 1.0, "protocol": "rand-60-20-20"},
            "graph_model": {**MODEL, **graph_model},
        }
    )


def held_out(tenth: int) -> np.ndarray:
    """bool [I]: a tenth of the items."""
    held_I = np.zeros(ITEMS, bool)
    order = generator_for(0, use="held-out-items").permutation(ITEMS)
    held_I[np.array_split(order, 10)[tenth]] = True
    return held_I


@pytest.fixture(scope="module")
def split() -> Split:
    config = config_of()
    return load_split(config.data, config.split)


def targets(split: Split, held_I: np.ndarray) -> HeldOut:
    return split.test.where(held_I[split.test.items_H])


def ndcg(scores_UI: np.ndarray, split: Split, held_I: np.ndarray, candidates_I: np.ndarray) -> float:
    """NDCG@10 of test clicks on held-out items, among the candidates that their users have not clicked."""
    found, log = targets(split, held_I), split.train
    seen_UI = np.repeat(~candidates_I[None], log.num_users, axis=0)
    seen_UI[ragged(log.offsets, log.items_C, np.arange(log.num_users))] = True
    counts = rank_counts(scores_UI, found.items_H, found.users_H, seen_UI)
    return float(ranking_metrics(*counts, (10,))["NDCG@10"].mean())


def inductive_scores(split: Split, held_I: np.ndarray, **graph_model) -> np.ndarray:
    """Trained without any click on a held item; their edges come back for the vectors, not for the weights."""
    config = config_of(**graph_model)
    seen = split.train.where(~held_I[split.train.items_C])
    reduced = replace(split, train=seen, cloud=seen, valid=split.valid.where(~held_I[split.valid.items_H]))
    task = prepare(config, reduced).task
    model, _ = fresh(config.graph_model, task)
    model.load_state_dict(dict(train(config.graph_model, task).best_weights))
    catalogue = catalogue_of(config, split.train, seen.popularity_I > 0)
    vectors_IF = all_vectors(model, catalogue.features.values_IF, catalogue.neighbours)
    users_UF = user_vectors(vectors_IF, split.train, np.arange(USERS), config.graph_model, map_of(model))
    return users_UF @ vectors_IF.T


def of_tenth(split: Split, held_I: np.ndarray) -> dict[tuple[str, str], float]:
    """NDCG@10 by (scorer, candidates)."""
    scorers = {
        "graph": inductive_scores(split, held_I),
        "features": inductive_scores(split, held_I, num_layers=0),
        "popularity": np.repeat(split.train.popularity_I[None].astype(np.float32), USERS, axis=0),
    }
    return {
        (name, among): ndcg(scores_UI, split, held_I, candidates_I)
        for name, scores_UI in scorers.items()
        for among, candidates_I in (("all", np.ones(ITEMS, bool)), ("new", held_I))
    }


@pytest.fixture(scope="module")
def found(split) -> dict[tuple[str, str], float]:
    """The mean over tenths."""
    parts = [of_tenth(split, held_out(tenth)) for tenth in TENTHS]
    return {key: float(np.mean([part[key] for part in parts])) for key in parts[0]}


@pytest.mark.slow
def test_new_items_are_told_apart_better_than_by_features_or_popularity(found):
    assert found["graph", "new"] > found["features", "new"]
    assert found["graph", "new"] > found["popularity", "new"]


@pytest.mark.slow
def test_new_items_rank_higher_among_all_items_than_by_popularity(found):
    assert found["graph", "all"] > found["popularity", "all"]
