"""Two questions to every model, each a full ranking.

- **user to item**: rank all items that the user has not clicked in training; relevant are the user's held-out clicks.
- **item to item**: rank the same candidates given *one* item, by that item's vector alone; relevant are the same
  clicks. Each user asks five times: with each of the last five training clicks where clicks have times, with five drawn
  ones where they have not (``data.shuffled``). A user's value is the mean over these questions.

Means are over users. NDCG@10 of both questions, summed, on validation clicks chooses epochs and hyper-parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from experiments.pinsage.data import Task
from fedquilt import metrics
from fedquilt.graphs.log import InteractionLog
from fedquilt.graphs.splits import HeldOut
from fedquilt.seeds import generator_for

NUM_QUERIES = 5
KS = (10, 50)
QUESTIONS = ("user", "item")
SELECTION = "NDCG@10"
_CELLS = 1 << 25  # scores at a time

RowScores = Callable[[np.ndarray], np.ndarray]  # users or items [B] -> scores [B, I]


@dataclass(frozen=True)
class Answers:
    """How a fitted model scores all items for users, and for items; ``choices`` are what validation chose late."""

    for_users: RowScores
    for_items: RowScores
    choices: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Questions:
    """R rows to be ranked: of user ``users_R``, asked with ``asked_R`` (that user, or an item)."""

    users_R: np.ndarray
    asked_R: np.ndarray


def item_questions(train: InteractionLog, users: np.ndarray, count: int = NUM_QUERIES) -> Questions:
    """The last ``count`` training clicks of each user, or as many as there are."""
    first_U = np.maximum(train.offsets[users + 1] - count, train.offsets[users])
    number_U = train.offsets[users + 1] - first_U
    start_R = np.repeat(first_U, number_U)
    place_R = np.arange(len(start_R)) - np.repeat(np.cumsum(number_U) - number_U, number_U)
    return Questions(np.repeat(users, number_U), train.items_C[start_R + place_R])


def counts(scores: RowScores, asked: Questions, held_out: HeldOut, train: InteractionLog) -> tuple[np.ndarray, ...]:
    """(greater_H, ties_H, rows_H): rank counts of every held-out click of every row's user, and the row it is for."""
    size = max(1, _CELLS // train.num_items)
    parts = [_counts(scores, asked, slice(at, at + size), held_out, train) for at in range(0, len(asked.users_R), size)]
    return tuple(np.concatenate(columns) for columns in zip(*parts, strict=True))


def _counts(scores: RowScores, asked: Questions, block: slice, held_out: HeldOut, train: InteractionLog) -> tuple:
    users_B = asked.users_R[block]
    offsets = np.searchsorted(held_out.users_H, np.arange(train.num_users + 1))
    rows_H, targets_H = metrics.ragged(offsets, held_out.items_H, users_B)
    rows_E, seen_E = metrics.ragged(train.offsets, train.items_C, users_B)
    seen = np.searchsorted(rows_E, np.arange(len(users_B) + 1)), seen_E
    greater_H, ties_H = metrics.rank_counts(scores(asked.asked_R[block]), targets_H, rows_H, seen)
    return greater_H, ties_H, rows_H + block.start


def quality(scores: RowScores, asked: Questions, held_out: HeldOut, train: InteractionLog) -> dict[str, np.ndarray]:
    """{"NDCG@10": [U], ...}, one value a user, in the order of the users."""
    greater_H, ties_H, rows_H = counts(scores, asked, held_out, train)
    by_row = metrics.ranking_metrics(greater_H, ties_H, KS, users_H=rows_H)
    user_R = np.unique(asked.users_R[np.unique(rows_H)], return_inverse=True)[1]
    return {name: np.bincount(user_R, values_R) / np.bincount(user_R) for name, values_R in by_row.items()}


def evaluated_users(held_out: HeldOut, train: InteractionLog, at_most: int | None = None) -> np.ndarray:
    """Users with a held-out and a training click; a sample that never changes where there are more than ``at_most``."""
    users = np.unique(held_out.users_H)
    users = users[np.diff(train.offsets)[users] > 0]
    if at_most is None or len(users) <= at_most:
        return users
    return np.sort(generator_for(0, use="judged-users").choice(users, at_most, replace=False))


def judged(
    answers: Answers,
    task: Task,
    part: str,
    at_most: int | None = None,
    ks: tuple[int, ...] = KS,
    questions: tuple[str, ...] = QUESTIONS,
) -> dict[str, float]:
    """{"user NDCG@10": mean, "item NDCG@10": mean, ...} on the ``valid`` or ``test`` clicks."""
    held_out: HeldOut = getattr(task, part)
    users = evaluated_users(held_out, task.train, at_most)
    asked = {
        "user": (answers.for_users, Questions(users, users)),
        "item": (answers.for_items, item_questions(task.train, users)),
    }
    found = {question: quality(*asked[question], held_out, task.train) for question in questions}
    return {
        f"{question} {name}": round(float(values.mean()), 5)
        for question, table in found.items()
        for name, values in table.items()
        if name.startswith(("NDCG", "Recall", "HR")) and int(name.partition("@")[2]) in ks
    }


def selection(values: dict[str, float]) -> float:
    return sum(values[f"{question} {SELECTION}"] for question in QUESTIONS)


def require_honest(task: Task) -> None:
    """Before any number is printed: scores that say nothing must sit at chance. Errors: MetricError."""
    for held_out in (task.valid, task.test):
        users = evaluated_users(held_out, task.train, at_most=500)
        kept = held_out.where(np.isin(held_out.users_H, users))
        asked = Questions(users, users)
        place = np.searchsorted(users, kept.users_H)
        candidates_H = task.train.num_items - np.diff(task.train.offsets)[kept.users_H]
        offered = np.zeros(task.train.num_users, np.int64)
        offered[users] = np.arange(len(users))

        def count(scores_UI: np.ndarray, kept: HeldOut = kept, asked: Questions = asked, at=offered) -> tuple:
            return counts(lambda users_B: scores_UI[at[users_B]], asked, kept, task.train)[:2]

        assert (users[place] == kept.users_H).all()
        metrics.canary(count, (len(users), task.train.num_items), candidates_H)
