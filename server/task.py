"""What a federation is started with: the seam between preparing a run and running its rounds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from fedquilt.errors import SpecMismatchError
from fedquilt.types import PatchSpec
from strategies.cohort import Draw
from strategies.evaluation import Evaluation, Examine, unexamined


class Root(Protocol):
    """What the cloud computes from data of its own; both are pure."""

    def update(self, round_: int, patch_P: np.ndarray) -> tuple[np.ndarray, Draw]:
        """(update [P] float32, what was drawn for it)."""

    def ndcg(self, patch_P: np.ndarray) -> float:
        """How well the patch serves; higher is better."""


class Ceiling(Protocol):
    def lowered(self, patch_P: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
        """(The patch to go on with, what an evaluation's record says of it); pure."""


class Lift(Protocol):
    def over(self, patch_P: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
        """(The most lift of each item under this patch, what an evaluation's record says of it); pure."""


@dataclass(frozen=True)
class Deployment:
    """Patch layout, the patch before round 1 (float32 [P]), and the frozen cloud tensors that every node gets.

    ``root``, ``ceiling`` and ``lift`` stay in the cloud: there where the configuration asks for them.
    """

    spec: PatchSpec
    initial_patch_P: np.ndarray
    base: Mapping[str, np.ndarray]
    root: Root | None = None
    ceiling: Ceiling | None = None
    lift: Lift | None = None

    def __post_init__(self) -> None:
        if self.initial_patch_P.shape != (self.spec.num_parameters,):
            raise SpecMismatchError(
                f"the initial patch has shape {self.initial_patch_P.shape}, its spec says ({self.spec.num_parameters},)"
            )


def _no_record(evaluation: Evaluation) -> Mapping[str, Any] | None:
    return None


def _nothing(record: Mapping[str, Any]) -> None:
    return None


def not_served(round_: int, patch_P: np.ndarray, ceiling_I: np.ndarray | None) -> None:
    return None


def _never() -> bool:
    return False


@dataclass(frozen=True)
class Hooks:
    """Called by the loop. An exception in a hook ends the run, which can then be resumed.

    ``on_evaluation`` turns per-user arrays into the fields of a record in metrics.jsonl (None: no record).
    ``on_round`` gets the round's record; its checkpoint is being written. ``examine`` says what is wrong with one
    node's answer to an evaluation, which then costs that node its place. ``draining`` is asked before each round; where
    it is true, the run ends with a checkpoint and a DrainedError. ``on_patch`` gets what to serve, a patch and the most
    lift of each item or None: that with which the run begins or goes on, then that of every round.
    """

    on_evaluation: Callable[[Evaluation], Mapping[str, Any] | None] = _no_record
    on_round: Callable[[Mapping[str, Any]], None] = _nothing
    examine: Examine = unexamined
    on_patch: Callable[[int, np.ndarray, np.ndarray | None], None] = not_served
    draining: Callable[[], bool] = _never


@dataclass(frozen=True)
class FederationResult:
    """The patch after the last round as users are served with it, and their arrays under it on both parts of the data.

    ``ceiling_I``: the most lift of each item, or None.
    """

    rounds: int
    patch_P: np.ndarray
    valid: Evaluation
    test: Evaluation
    ceiling_I: np.ndarray | None = None
