"""Canary users as real clients: a local task that sends what an audit planted, over the whole path of a device.

The other users of the population are silent: they have no examples, so nothing of theirs is in a sum, and an auditor
who knows everybody else's update loses nothing by it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from client.task import LocalUpdates
from fedquilt.config import Config
from fedquilt.privacy.audit.canaries import CLAIMED_EXAMPLES, LOUD, Canaries
from fedquilt.types import PatchSpec


def canary_spec(num_parameters: int) -> PatchSpec:
    return PatchSpec((("canaries", (num_parameters,)),))


@dataclass(frozen=True, eq=False)
class CanaryTasks:
    """A ``TaskFactory``: users ``population_U``, of whom some are canaries. For nodes of this process only."""

    canaries: Canaries
    population_U: np.ndarray

    def __call__(self, config: Config, partition_id: int, num_partitions: int) -> CanaryTask:
        hosted_U = self.population_U[partition_id::num_partitions]
        return CanaryTask(self.canaries, hosted_U, LOUD * config.federation.clipping_norm)


@dataclass(frozen=True, eq=False)
class CanaryTask:
    """A ``LocalTask``. Rows are far too long (``norm``) and claim an absurd weight: to bound both is for others."""

    canaries: Canaries
    client_ids_U: np.ndarray
    norm: float
    personal_size: int = 0

    @property
    def spec(self) -> PatchSpec:
        return canary_spec(self.canaries.num_parameters)

    def install(self, base: Mapping[str, np.ndarray]) -> None:
        return None

    def train(
        self, client_ids_K: np.ndarray, patch_P: np.ndarray, personal_KR: np.ndarray, round_: int, run_seed: int
    ) -> LocalUpdates:
        sends_K = self.canaries.sends(client_ids_K)
        rows_KP = self.canaries.rows(client_ids_K, self.norm)
        return LocalUpdates(rows_KP, np.where(sends_K, CLAIMED_EXAMPLES, 0))

    def evaluate(
        self, client_ids_K: np.ndarray, patch_P: np.ndarray, personal_KR: np.ndarray, part: str
    ) -> Mapping[str, np.ndarray]:
        return {"hosted": np.ones(len(client_ids_K), np.float32)}
