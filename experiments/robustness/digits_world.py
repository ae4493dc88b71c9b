"""scikit-learn's digits among 16 honest clients, and the loop that 4 colluders attack: softmax regression, momentum.

Shapes: H honest clients, M colluders, K = H + M, B batch, P = 650 parameters, D digits of a part.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from sklearn.datasets import load_digits

from fedquilt.seeds import generator_for

HONEST, COLLUDERS, CLASSES = 16, 4, 10
TEST_SHARE, VALIDATION_SHARE, LEAST_DIGITS = 0.25, 0.2, 10
ROUNDS, LEARNING_RATE, MOMENTUM, BATCH = 300, 0.5, 0.9, 32

Rule = Callable[[np.ndarray, int], np.ndarray]
"""(updates [K, P], round) -> update [P]."""


@dataclass
class Scene:
    """What colluders see in a round. ``flipped_HP``: the honest clients' updates had their labels been 9 - y."""

    honest_HP: np.ndarray
    flipped_HP: np.ndarray
    round_: int
    generator: np.random.Generator
    rule: Callable[[np.ndarray], np.ndarray]
    memory: dict[str, Any] = field(default_factory=dict)


Attack = Callable[[Scene], np.ndarray]
"""-> rows [M, P]."""


def digits(part: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(pixels and a one [D, 65], labels [D]) to train on, and to score; one test part whatever the seed.

    ``validation``: the test digits stay unseen; a fifth of the others is scored instead.
    """
    pixels, labels = load_digits(return_X_y=True)
    inputs = np.concatenate([pixels / 16, np.ones((len(labels), 1))], axis=1).astype(np.float32)
    order = generator_for(0, 0, 0, "digits-parts").permutation(len(labels))
    num_test = int(TEST_SHARE * len(labels))
    scored, trained = order[:num_test], order[num_test:]
    if part == "validation":
        num_scored = int(VALIDATION_SHARE * len(trained))
        scored, trained = trained[:num_scored], trained[num_scored:]
    return inputs[trained], labels[trained], inputs[scored], labels[scored]


def partition(labels: np.ndarray, split: str, seed: int) -> list[np.ndarray]:
    """Places of each honest client's digits. ``sorted``: equal stretches in order of label; else Dirichlet of 0.5."""
    if split == "sorted":
        shuffled = generator_for(seed, 0, 0, "digits-sorted").permutation(len(labels))
        return np.array_split(shuffled[np.argsort(labels[shuffled], kind="stable")], HONEST)
    generator = generator_for(seed, 0, 0, "digits-dirichlet")
    while True:
        owner = np.empty(len(labels), np.int64)
        for label in range(CLASSES):
            places = generator.permutation(np.flatnonzero(labels == label))
            ends = np.cumsum(generator.dirichlet([0.5] * HONEST))[:-1] * len(places)
            for client, part in enumerate(np.split(places, ends.astype(int))):
                owner[part] = client
        if np.bincount(owner, minlength=HONEST).min() >= LEAST_DIGITS:
            return [np.flatnonzero(owner == client) for client in range(HONEST)]


def accuracy(rule: Rule, attack: Attack | None, split: str, seed: int, part: str, rounds: int = ROUNDS) -> float:
    """Share of digits that the patch of the last round tells right. ``attack`` None: the honest clients alone.

    Each client sends its momentum of minibatch gradients, negated; the server adds ``LEARNING_RATE`` times what the
    rule makes of all rows. Colluders see the honest rows first.
    """
    inputs, labels, scored, truth = digits(part)
    clients, drawn = partition(labels, split, seed), generator_for(seed, 0, 0, "digits-batches")
    patch: np.ndarray = np.zeros((inputs.shape[1], CLASSES), np.float32)
    honest_HP: np.ndarray = np.zeros((HONEST, patch.size), np.float32)
    flipped_HP: np.ndarray = np.zeros_like(honest_HP)
    memory: dict[str, Any] = {}
    for round_ in range(rounds):
        batch_HB = np.stack([places[drawn.integers(0, len(places), BATCH)] for places in clients])
        x, y = inputs[batch_HB], labels[batch_HB]
        honest_HP = MOMENTUM * honest_HP - (1 - MOMENTUM) * _gradients(patch, x, y)
        rows_KP = honest_HP
        if attack is not None:
            flipped_HP = MOMENTUM * flipped_HP - (1 - MOMENTUM) * _gradients(patch, x, CLASSES - 1 - y)
            keyed = generator_for(seed, round_, 0, "digits-attack")
            scene = Scene(honest_HP, flipped_HP, round_, keyed, partial(_peek, rule, round_), memory)
            rows_KP = np.concatenate([honest_HP, attack(scene)]).astype(np.float32)
        patch = patch + np.float32(LEARNING_RATE) * rule(rows_KP, round_).reshape(patch.shape)
    return float(((scored @ patch).argmax(axis=1) == truth).mean())


def _peek(rule: Any, round_: int, rows_KP: np.ndarray) -> np.ndarray:
    """What the rule would make of these rows now; its state stays as it is."""
    peek: Callable[[np.ndarray, int], np.ndarray] = getattr(rule, "peek", rule)
    return peek(rows_KP, round_)


def _gradients(patch: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """[H, P]: of the mean cross-entropy of every client's batch."""
    scores = x @ patch
    chances = np.exp(scores - scores.max(axis=-1, keepdims=True))
    chances /= chances.sum(axis=-1, keepdims=True)
    chances -= np.eye(CLASSES, dtype=np.float32)[y]
    return (x.transpose(0, 2, 1) @ chances).reshape(len(x), -1) / np.float32(x.shape[1])
