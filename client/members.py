"""A federation in which only some users take part, and what a released patch says of each user's data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from client.task import LocalTask, LocalUpdates, TaskFactory
from fedquilt.config import Config
from fedquilt.types import PatchSpec

_DRAWS = 4  # of a user's contexts, over which losses are averaged
_DRAWN = 1_000_000  # round that keys these draws: none that trains


@dataclass(frozen=True, eq=False)
class MemberTasks:
    """A ``TaskFactory``: tasks of ``inner`` of which only users in ``members_M`` (sorted ids) have anything to say."""

    inner: TaskFactory
    members_M: np.ndarray

    def __call__(self, config: Config, partition_id: int, num_partitions: int) -> MemberTask:
        return MemberTask(self.inner(config, partition_id, num_partitions), self.members_M)


@dataclass(frozen=True, eq=False)
class MemberTask:
    task: LocalTask
    members_M: np.ndarray

    @property
    def spec(self) -> PatchSpec:
        return self.task.spec

    @property
    def client_ids_U(self) -> np.ndarray:
        return self.task.client_ids_U

    @property
    def personal_size(self) -> int:
        return self.task.personal_size

    def install(self, base: Mapping[str, np.ndarray]) -> None:
        self.task.install(base)

    def train(
        self, client_ids_K: np.ndarray, patch_P: np.ndarray, personal_KR: np.ndarray, round_: int, run_seed: int
    ) -> LocalUpdates:
        local = self.task.train(client_ids_K, patch_P, personal_KR, round_, run_seed)
        return replace(local, num_examples_K=np.where(np.isin(client_ids_K, self.members_M), local.num_examples_K, 0))

    def evaluate(
        self, client_ids_K: np.ndarray, patch_P: np.ndarray, personal_KR: np.ndarray, part: str
    ) -> Mapping[str, np.ndarray]:
        return self.task.evaluate(client_ids_K, patch_P, personal_KR, part)


def losses_of(task: LocalTask, client_ids_U: np.ndarray, patch_P: np.ndarray, run_seed: int) -> np.ndarray:
    """float64 [U]: mean of the losses that a user's own training data has under the patch."""
    personal_UR = np.zeros((len(client_ids_U), task.personal_size), np.float32)
    draws = []
    for draw in range(_DRAWS):
        metrics = task.train(client_ids_U, patch_P, personal_UR, _DRAWN + draw, run_seed).metrics
        draws.append(np.mean([values_U for name, values_U in metrics.items() if name.endswith("loss")], axis=0))
    return np.mean(draws, axis=0)
