"""Adaptive: any attack on updates, and a search against the cloud's own rule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from logging import WARNING

import numpy as np
from flwr.common.logger import log

from client.attacks.around import Around
from client.attacks.contract import ATTACKS, View
from client.attacks.directions import DIRECTIONS
from client.attacks.spared import spared
from client.attacks.vectors import alike, mean, of_norm, unit

GRID = tuple(2.0**power for power in range(-6, 5))
COVERS = ("own", "noise")
SHARES = (0.2, 0.35, 0.5, 0.7)
GROUPS = (1, 3)  # rows alike: as many as rules that look for repeated rows commonly let stand, and none
_ALIKE = 1e-6  # of the largest score
Make = Callable[[float], np.ndarray]
"""A number -> rows [M, P]: one form of an attack, of which the number is to be searched."""


@ATTACKS.register("adaptive")
@dataclass(frozen=True)
class Adaptive(Around):
    """Runs the cloud's rule on what it might send, and sends the rows that hurt most.

    mu is the honest mean; r are the rows of ``inner``, and for an untargeted one also mu + each of the directions of
    Shejwalkar and Houmansadr at the norm of mu. Plain rows are mu + gamma · (r - mu), gamma from 2^-6 to 2^4. Covered
    rows, for rules that look for rows alike, are at the clipping norm s · w + sqrt(1 - s²) · c, w the direction of
    r - mu and c the colluder's own update or noise, shared by groups of ``GROUPS``, s from ``SHARES``. ``refine``
    golden-section steps around the best. Tensors of the patch in ``spare`` are the colluder's own honest ones in each
    candidate, for rules that look at these. Damage: for an untargeted attack the rule's result against mu,
    -<rule(X), mu> / |mu|; for any other how far it goes the inner attack's way, <rule(X), r - mu> / |r - mu|.

    Where all that was tried scores alike the search has told nothing, and a warning and ``memory["adaptive"]`` say so.
    """

    refine: int = 6
    spare: Sequence[str] = ()

    @property
    def source(self) -> str:
        return "Shejwalkar and Houmansadr 2021 (rule known); Fang et al. 2020, arXiv:1911.11815"

    def rows(self, view: View) -> np.ndarray:
        centre_P = mean(view.benign_HP)
        tries = [
            (form, number, _wanted(self.goal, centre_P, way_MP))
            for way_MP in self._ways(view, centre_P)
            for form, numbers in self._forms(view, centre_P, way_MP)
            for number in numbers
        ]

        def harm(rows_MP: np.ndarray, wanted_P: np.ndarray) -> float:
            return float(view.rule(np.concatenate([view.benign_HP, rows_MP])) @ wanted_P)

        scores = [harm(form(number), wanted_P) for form, number, wanted_P in tries]
        best = int(np.argmax(scores))
        _tell_where_alike(view, scores)
        form, number, wanted_P = tries[best]
        finer = golden(lambda x: harm(form(x), wanted_P), number / 2, number * 2, self.refine)
        return form(finer if harm(form(finer), wanted_P) > scores[best] else number)

    def _forms(self, view: View, centre_P: np.ndarray, way_MP: np.ndarray) -> list[tuple[Make, tuple[float, ...]]]:
        def sparing(form: Make) -> Make:
            return lambda number: spared(view, form(number), self.spare)

        return [(sparing(form), numbers) for form, numbers in _forms(view, centre_P, way_MP)]

    def _ways(self, view: View, centre_P: np.ndarray) -> list[np.ndarray]:
        inner_MP = self._inner.rows(view)
        ways = [inner_MP - centre_P]
        if self.goal == "untargeted":
            length = float(np.linalg.norm(centre_P))
            ways += [alike(length * unit(p(view.benign_HP)), len(inner_MP)) for p in DIRECTIONS.values()]
        return ways


def _forms(view: View, centre_P: np.ndarray, way_MP: np.ndarray) -> list[tuple[Make, tuple[float, ...]]]:
    """Each form of rows with the numbers to try."""

    def plain(gamma: float) -> np.ndarray:
        return (centre_P + gamma * way_MP).astype(np.float32)

    noise_MP = view.generator.standard_normal(way_MP.shape)
    covers = {"own": view.own_MP.astype(np.float64), "noise": noise_MP}
    hidden = [(_covered(view, way_MP, covers[name], group), SHARES) for name in COVERS for group in GROUPS]
    return [(plain, GRID), *hidden]


def _covered(view: View, way_MP: np.ndarray, cover_MP: np.ndarray, group: int) -> Make:
    leaders_M = np.arange(len(way_MP)) // group * group

    def rows(share: float) -> np.ndarray:
        share = min(share, 1.0)
        pairs = zip(way_MP, cover_MP[leaders_M], strict=True)
        mixed = [share * unit(way_P) + np.sqrt(1 - share**2) * unit(cover_P) for way_P, cover_P in pairs]
        return np.stack([of_norm(row_P, view.clipping_norm) for row_P in mixed]).astype(np.float32)

    return rows


def _tell_where_alike(view: View, scores: list[float]) -> None:
    if max(scores) - min(scores) > _ALIKE * max(map(abs, scores)):
        return
    told = f"round {view.round_}: all {len(scores)} candidates score {scores[0]:.3g}: the search told nothing"
    view.memory.setdefault("adaptive", []).append(told)
    log(WARNING, "attack adaptive, %s", told)


def _wanted(goal: str, centre_P: np.ndarray, way_MP: np.ndarray) -> np.ndarray:
    """The unit direction in which the attacker wants the rule's result to go."""
    return -unit(centre_P) if goal == "untargeted" else unit(way_MP.mean(axis=0))


def golden(value: Callable[[float], float], low: float, high: float, steps: int) -> float:
    """Golden-section search for the largest value of a function with one peak in [low, high]."""
    ratio = (5**0.5 - 1) / 2
    for _ in range(steps):
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        low, high = (low, right) if value(left) >= value(right) else (left, high)
    return (low + high) / 2
