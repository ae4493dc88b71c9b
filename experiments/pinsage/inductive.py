"""Items that appear after training: a tenth of the catalogue, drawn once, held out of graph, pairs and features.

A model is trained on the clicks on the other items. Then all training clicks come back: the held-out items get their
edges, their features and, by the trained weights, their vectors; nothing is trained again. Asked are the test clicks on
held-out items, among *all* items that the user has not clicked in training; a user is what the user clicked, held-out
items included. Epoch and form of the scores are chosen by validation clicks on the other items.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from experiments.pinsage import from_items, graph_model
from experiments.pinsage.data import Task
from experiments.pinsage.graph_model import JUDGE_EVERY
from experiments.pinsage.judge import Answers
from experiments.pinsage.spectral import extended
from fedquilt.config import GraphModelConfig
from fedquilt.graphs.features import GivenVectors, item_features
from fedquilt.graphs.splits import HeldOut
from fedquilt.seeds import generator_for
from server.graph_training.prepare import neighbour_table
from server.graph_training.trainer import fresh
from server.graph_training.vectors import all_vectors, map_of

SHARE = 0.1
FEATURE_ONLY = {"num_layers": 0, "spectral": 0, "hard_negatives": False}


def held_out_items(task: Task) -> np.ndarray:
    """bool [I]: a tenth of the items that were clicked in training."""
    clicked = np.flatnonzero(task.train.popularity_I)
    drawn = generator_for(0, use="inductive-items").choice(clicked, max(1, int(SHARE * len(clicked))), replace=False)
    new_I = np.zeros(task.train.num_items, bool)
    new_I[drawn] = True
    return new_I


def seen_task(task: Task, new_I: np.ndarray) -> Task:
    """The task as it was before the items appeared: what a model is trained on and chosen by."""
    return replace(task, train=task.train.where(~new_I[task.train.items_C]), valid=_on(task.valid, ~new_I))


def asked_task(task: Task) -> Task:
    """All training clicks, and the test clicks on the new items."""
    return replace(task, test=_on(task.test, held_out_items(task)))


def _on(held_out: HeldOut, wanted_I: np.ndarray) -> HeldOut:
    return held_out.where(wanted_I[held_out.items_H])


def feature_only(task: Task, seed: int, **hyper: Any) -> tuple[Answers, int]:
    """The same loss and dense layers without convolutions, on an item's own features and degree."""
    return pinsage(task, seed, **{**hyper, **FEATURE_ONLY})


def pinsage(
    task: Task, seed: int, spectral: int = 64, windowed: bool = True, judge_every: int = JUDGE_EVERY, **settings: Any
) -> tuple[Answers, int]:
    """Answers to ``asked_task``, from weights that were trained on ``seen_task``."""
    config, new_I = graph_model.settings_of(settings), held_out_items(task)
    before = seen_task(task, new_I)
    values_IF = graph_model.features(config, before.train, spectral, windowed)
    training = graph_model.training_task(config, before.train, seed, values_IF)
    weights, answers, _, epoch = graph_model.fit_vectors(config, training, before, judge_every)
    graph = graph_model.graph_of(config, task.train)
    later_IF = later_features(config, task, before, spectral, windowed, new_I)
    model, _ = fresh(config, training)
    model.load_state_dict(dict(weights))
    vectors_ID = all_vectors(model, later_IF, neighbour_table(config, graph, seed))
    return from_items.answers_of(vectors_ID, task, answers.choices, map_of(model)), epoch


def later_features(
    config: GraphModelConfig, task: Task, before: Task, spectral: int, windowed: bool, new_I: np.ndarray
) -> np.ndarray:
    """Scaled as in training; an item that training knew keeps its spectral vector, a new one is put beside these."""
    given = [graph_model.clicks_of(task.train)]
    if spectral:
        old = graph_model.spectrum_of(before.train, spectral, windowed)
        given.append(GivenVectors("spectral", extended(old, task.train, windowed, new_I)))
    graph = graph_model.graph_of(config, task.train)
    return item_features(task.train, graph, given, fitted_on_I=before.train.popularity_I > 0).values_IF
