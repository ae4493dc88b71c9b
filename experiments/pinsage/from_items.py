"""Answers of a model that has vectors for items only: a user is what the user clicked.

    score(u, i) = Σ_{j clicked} decay^age(j) · f(z_j · z_i),   f(x) = x, or max(x, 0)^power
    score(u, i) = Σ_{j clicked} decay^age(j) · z_j · U z_i     of a model with a user map U

age 0 is the latest click. With f(x) = x this is the dot product with a weighted sum of the user's item vectors. What is
tried (dot product or cosine; decays where clicks have times; powers where the catalogue is small enough for [I, I]) is
chosen on validation clicks for each question on its own, after each judged epoch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from scipy import sparse

from experiments.pinsage.baselines import on_validation, vector_rows
from experiments.pinsage.data import Task
from experiments.pinsage.judge import QUESTIONS, SELECTION, Answers, RowScores
from fedquilt import metrics
from fedquilt.graphs.log import InteractionLog

DECAYS, POWERS = (1.0, 0.97, 0.9), (1, 3)
_SMALL = 5000  # items up to which [I, I] scores are held


@dataclass(frozen=True)
class HistoryScores:
    """users [B] -> [B, I]. ``pairwise_II``: f(z_j · z_i), or None for f(x) = x, and then ``map_DD`` or the identity."""

    log: InteractionLog
    vectors_ID: np.ndarray
    decay: float
    pairwise_II: np.ndarray | None = None
    map_DD: np.ndarray | None = None

    def __call__(self, users_B: np.ndarray) -> np.ndarray:
        rows, items = metrics.ragged(self.log.offsets, self.log.items_C, users_B)
        ends_B = np.searchsorted(rows, np.arange(len(users_B)), side="right")
        age = ends_B[rows] - 1 - np.arange(len(rows))
        shape = (len(users_B), self.log.num_items)
        weights_BI = sparse.csr_array(((self.decay**age).astype(np.float32), (rows, items)), shape=shape)
        if self.pairwise_II is not None:
            return weights_BI @ self.pairwise_II
        users_BD = weights_BI @ self.vectors_ID
        return (users_BD if self.map_DD is None else users_BD @ self.map_DD) @ self.vectors_ID.T


Offered = tuple[RowScores, dict[str, Any]]


def best_answers(
    vectors_ID: np.ndarray, task: Task, map_DD: np.ndarray | None = None
) -> tuple[Answers, dict[str, float]]:
    """The answers that validation clicks like best, and their values there. ``map_DD``: the model's user map."""
    forms = forms_of(vectors_ID)
    users, items = list(_user_scores(forms, task, map_DD)), _item_scores(forms)
    best: dict[str, Offered] = {}
    values: dict[str, float] = {}
    for question, offered in zip(QUESTIONS, (users, items), strict=True):
        for scores, choices in offered:
            found = on_validation(Answers(scores, scores), task, (question,))
            if found[f"{question} {SELECTION}"] > values.get(f"{question} {SELECTION}", -1.0):
                best[question] = scores, choices
                values |= found
    (for_users, user_choices), (for_items, item_choices) = (best[question] for question in QUESTIONS)
    return Answers(for_users, for_items, user_choices | item_choices), values


def answers_of(
    vectors_ID: np.ndarray, task: Task, choices: dict[str, Any], map_DD: np.ndarray | None = None
) -> Answers:
    """The answers with choices that were made earlier."""
    forms = forms_of(vectors_ID)
    offered = [*_user_scores(forms, task, map_DD), *_item_scores(forms)]
    for_users, for_items = (
        next(scores for scores, own in offered if own.items() <= choices.items() and f"{question}_score" in own)
        for question in QUESTIONS
    )
    return Answers(for_users, for_items, choices)


def forms_of(vectors_ID: np.ndarray) -> dict[str, np.ndarray]:
    """The vectors, and the vectors at unit length."""
    lengths_I = np.linalg.norm(vectors_ID, axis=1, keepdims=True)
    return {"dot": vectors_ID, "cosine": vectors_ID / np.maximum(lengths_I, 1e-9)}


def _item_scores(forms: dict[str, np.ndarray]) -> list[Offered]:
    return [(vector_rows(form_ID), {"item_score": name}) for name, form_ID in forms.items()]


def _user_scores(forms: dict[str, np.ndarray], task: Task, map_DD: np.ndarray | None) -> Iterator[Offered]:
    decays = DECAYS if task.ordered else DECAYS[:1]
    if map_DD is not None:
        for decay in decays:
            scores = HistoryScores(task.train, forms["dot"], decay, map_DD=map_DD)
            yield scores, {"user_score": "mapped", "user_decay": decay, "user_power": 1}
        return
    for (name, form_ID), power in product(forms.items(), POWERS):
        if power > 1 and (name == "dot" or task.train.num_items > _SMALL):
            continue
        pairwise_II = None if power == 1 else np.maximum(form_ID @ form_ID.T, 0) ** power
        for decay in decays:
            scores = HistoryScores(task.train, form_ID, decay, pairwise_II)
            yield scores, {"user_score": name, "user_decay": decay, "user_power": power}
