"""PinSage as ``fedquilt cloud train`` trains it, with the study's features and judge: task -> answers.

Features: the log's own (genres and year, abstracts), log degree, and spectral vectors of the training co-clicks. All of
an item's vector comes from its features and its neighbourhood, so the model is inductive.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np

from experiments.pinsage.data import Task
from experiments.pinsage.from_items import best_answers
from experiments.pinsage.judge import Answers, selection
from experiments.pinsage.spectral import Spectrum, spectrum
from fedquilt.config import GraphModelConfig
from fedquilt.graphs.coclick import CoClickGraph, build_coclick
from fedquilt.graphs.features import GivenVectors, item_features
from fedquilt.graphs.log import InteractionLog
from fedquilt.graphs.splits import HeldOut
from server.graph_training.batches import Material
from server.graph_training.checkpoint import Progress
from server.graph_training.negatives import hard_pool, shared_distribution
from server.graph_training.pairs import click_pairs
from server.graph_training.prepare import neighbour_table
from server.graph_training.schedule import hard_negatives_at
from server.graph_training.trainer import Hooks, fresh, train
from server.graph_training.trainer import Task as TrainingTask
from server.graph_training.vectors import all_vectors, map_of

JUDGE_EVERY = 3  # epochs


def fit(
    task: Task, seed: int, spectral: int = 64, windowed: bool = True, judge_every: int = JUDGE_EVERY, **settings: Any
) -> tuple[Answers, int]:
    """The epoch that validation likes best, of every ``judge_every``-th and the last. ``settings``: [graph_model]."""
    config = settings_of(settings)
    training = training_task(config, task.train, seed, features(config, task.train, spectral, windowed))
    _, answers, _, epoch = fit_vectors(config, training, task, judge_every)
    return answers, epoch


def untrained(task: Task, seed: int, spectral: int = 64, windowed: bool = True, **settings: Any) -> tuple[Answers, int]:
    """The spectral vectors as they are."""
    vectors_ID = spectrum_of(task.train, spectral, windowed).vectors_ID.astype(np.float32)
    return best_answers(vectors_ID, task)[0], 0


def settings_of(settings: Mapping[str, Any]) -> GraphModelConfig:
    return GraphModelConfig.model_validate({"num_producers": 0, **settings})


def fit_vectors(
    config: GraphModelConfig, training: TrainingTask, task: Task, judge_every: int = JUDGE_EVERY
) -> tuple[dict[str, Any], Answers, dict[str, float], int]:
    """(weights, answers, validation values, epoch) of the best judged epoch."""
    found: list[tuple[dict[str, Any], Answers, dict[str, float], int]] = []

    def judge(progress: Progress) -> None:
        if progress.epoch % judge_every and progress.epoch != config.epochs:
            return
        vectors_ID, map_DD = vectors_of(config, training, progress.weights)
        answers, values = best_answers(vectors_ID, task, map_DD)
        if not found or selection(values) > selection(found[-1][2]):
            found.append((dict(progress.weights), answers, values, progress.epoch))

    train(config, training, hooks=Hooks(on_epoch=judge))
    return found[-1]


def vectors_of(
    config: GraphModelConfig, training: TrainingTask, weights: Mapping[str, Any]
) -> tuple[np.ndarray, np.ndarray | None]:
    """All items' vectors and the user map."""
    model, _ = fresh(config, training)
    model.load_state_dict(dict(weights))
    return all_vectors(model, training.material.values_IF, training.neighbours), map_of(model)


def training_task(config: GraphModelConfig, log: InteractionLog, seed: int, values_IF: np.ndarray) -> TrainingTask:
    """What the trainer wants; it gets no validation clicks, since the study judges both questions itself."""
    graph = graph_of(config, log)
    pool_IR = np.full((log.num_items, 1), -1, np.int32)
    if hard_negatives_at(config, config.epochs):
        pool_IR = _hard_pool(_Once(log), *(getattr(config, name) for name in _OF_POOLS))
    cumulative_I = shared_distribution(log.popularity_I, config.negative_power)
    pairs_P2 = np.zeros((0, 2), np.int64) if config.pairs == "users" else click_pairs(log, config.pair_window)
    material = Material(graph, values_IF, pairs_P2, cumulative_I, pool_IR, log)
    nothing = HeldOut(log.users_C[:0], log.items_C[:0])
    return TrainingTask(material, log, nothing, neighbour_table(config, graph, seed), seed, "study")


def features(config: GraphModelConfig, log: InteractionLog, spectral: int, windowed: bool) -> np.ndarray:
    """float32 [I, F], standardised."""
    given = [clicks_of(log)]
    if spectral:
        given.append(GivenVectors("spectral", spectrum_of(log, spectral, windowed).vectors_ID))
    return item_features(log, graph_of(config, log), given, fitted_on_I=log.popularity_I > 0).values_IF


def clicks_of(log: InteractionLog) -> GivenVectors:
    """The degree in a graph of items and users, as in PinSage: log(1 + clicks)."""
    return GivenVectors("log-clicks", np.log1p(log.popularity_I)[:, None])


def graph_of(config: GraphModelConfig, log: InteractionLog) -> CoClickGraph:
    return _graph(_Once(log), config.window, config.top_edges)


def spectrum_of(log: InteractionLog, dim: int, windowed: bool) -> Spectrum:
    return _spectrum(_Once(log), dim, windowed)


class _Once:
    """A log as a key of a cache: by its hash."""

    def __init__(self, log: InteractionLog):
        self.log = log

    def __hash__(self) -> int:
        return hash(self.log.hash)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Once) and other.log.hash == self.log.hash


@lru_cache(maxsize=4)
def _graph(of: _Once, window: int, top_edges: int) -> CoClickGraph:
    return build_coclick(of.log, window, top_edges)


_OF_POOLS = ("window", "top_edges", "hard_first", "hard_last", "hard_alpha")


@lru_cache(maxsize=2)
def _hard_pool(of: _Once, *settings: float) -> np.ndarray:
    """The same for all seeds: minutes for a large catalogue, and negatives are drawn from it by each seed anew."""
    config = settings_of(dict(zip(_OF_POOLS, settings, strict=True)))
    return hard_pool(graph_of(config, of.log), config, seed=0)


@lru_cache(maxsize=4)
def _spectrum(of: _Once, dim: int, windowed: bool) -> Spectrum:
    return spectrum(of.log, dim, windowed)
