"""What a device does with a patch, apart from talking to Flower: the seam between the ClientApp and the learning.

``client.app`` parses a message, calls a ``LocalTask`` and replies. ``client.recommend`` is the recommender; a benchmark
or a test may bring a task of its own and run through the whole path.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from fedquilt.config import Config
from fedquilt.errors import SpecMismatchError
from fedquilt.types import PatchSpec


@dataclass(frozen=True)
class LocalUpdates:
    """K users' answers to one round: not yet clipped updates (patch after - before), one row per user.

    ``updates_KP`` is float32 and handed over: the caller may overwrite it. A user with ``num_examples`` 0, or whose
    update is not finite, does not take part: nothing of theirs is sent, and their stored personal patch stays.
    ``personal_KR`` are the users' new personal patches, float32; they stay on the device. None where the task keeps
    none. ``metrics`` are per-user numbers [K] of which the cloud records the mean.
    """

    updates_KP: np.ndarray
    num_examples_K: np.ndarray
    personal_KR: np.ndarray | None = None
    metrics: Mapping[str, np.ndarray] = field(default_factory=dict)


class LocalTask(Protocol):
    """The users that one node hosts, and what they compute.

    ``client_ids_U`` (int64) are stable across runs and nodes. ``personal_KR`` rows are what the device's store holds
    for these users, zeros for a user who has none yet; R = ``personal_size`` (0: nothing is stored).
    """

    @property
    def spec(self) -> PatchSpec: ...

    @property
    def client_ids_U(self) -> np.ndarray: ...

    @property
    def personal_size(self) -> int: ...

    def install(self, base: Mapping[str, np.ndarray]) -> None:
        """Take the frozen cloud tensors (item vectors, kernel weights) that the cloud deployed.

        The arrays are read-only views that the tasks of one process share.
        """

    def train(
        self, client_ids_K: np.ndarray, patch_P: np.ndarray, personal_KR: np.ndarray, round_: int, run_seed: int
    ) -> LocalUpdates:
        """One round of local work for these users; the result does not depend on how users are grouped into calls."""

    def evaluate(
        self, client_ids_K: np.ndarray, patch_P: np.ndarray, personal_KR: np.ndarray, part: str
    ) -> Mapping[str, np.ndarray]:
        """Per-user arrays, first axis K, on ``part`` ("valid" or "test") of the local data."""


def under(task: LocalTask, ceiling_I: np.ndarray) -> LocalTask:
    """The task with a ceiling on lift (``models/lift.py``); SpecMismatchError for one that knows none."""
    method = getattr(task, "under", None)
    if method is None:
        raise SpecMismatchError("the cloud sent a ceiling on lift, and this node's task ranks no items under one")
    bounded: LocalTask = method(ceiling_I)
    return bounded


TaskFactory = Callable[[Config, int, int], LocalTask]
"""(config, partition_id, num_partitions) -> the task of that node."""
