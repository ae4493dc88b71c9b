"""Models with a vector for every user and item that they were fitted to: popularity, BPR-MF, LightGCN.

An item vector answers an item by its dot product or its cosine with the others: validation takes the better.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from experiments.peers import bpr_mf, lightgcn
from experiments.peers.interface import Factored
from experiments.pinsage.data import Task
from experiments.pinsage.judge import QUESTIONS, Answers, judged, selection

JUDGED_USERS, JUDGED_SCORES = 1000, 1 << 23  # bounds on a look at validation clicks: users, and users times items
Fit = Callable[..., tuple[Answers, int]]  # (task, seed, **hyper) -> answers of the best epoch, and which that was


def popularity(task: Task, seed: int) -> tuple[Answers, int]:
    scores_I = task.train.popularity_I.astype(np.float32)

    def rows(asked: np.ndarray) -> np.ndarray:
        return np.broadcast_to(scores_I, (len(asked), len(scores_I)))

    return Answers(rows, rows), 0


def bpr(task: Task, seed: int, **hyper: float) -> tuple[Answers, int]:
    return _best(bpr_mf.fit, task, seed, hyper)


def light(task: Task, seed: int, **hyper: float) -> tuple[Answers, int]:
    return _best(lightgcn.fit, task, seed, hyper)


def _best(fit: Callable[..., Factored], task: Task, seed: int, hyper: dict) -> tuple[Answers, int]:
    def validate(factored: Factored) -> float:
        return max(selection(on_validation(answers, task)) for answers in both(factored))

    factored = fit(task.train, validate, seed, **hyper)
    best = max(both(factored), key=lambda answers: selection(on_validation(answers, task)))
    return best, factored.epoch


def on_validation(answers: Answers, task: Task, questions: tuple[str, ...] = QUESTIONS) -> dict[str, float]:
    """What epochs and hyper-parameters are chosen by: a sample of users that never changes."""
    return judged(answers, task, "valid", min(JUDGED_USERS, JUDGED_SCORES // task.train.num_items), (10,), questions)


def both(factored: Factored) -> list[Answers]:
    """By dot product, and by cosine, between items; users always by the model's own scores."""
    return [
        Answers(factored, vector_rows(vectors_ID.numpy()), {"item_score": name})
        for name, vectors_ID in (
            ("dot", factored.items_ID),
            ("cosine", torch.nn.functional.normalize(factored.items_ID, dim=1)),
        )
    ]


def vector_rows(vectors_ID: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Dot products of the asked items with all items; an item is not asked for itself (it is seen)."""
    return lambda items_B: vectors_ID[items_B] @ vectors_ID.T
