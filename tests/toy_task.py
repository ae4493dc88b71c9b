"""A local task of four lines of arithmetic, for tests of everything around it.

User u wants the patch to be near a target of their own. One round: half a step towards it, plus keyed noise, plus a
push by the personal patch, which counts the user's rounds. All of it depends on the user's own key only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from client.app import make_client_app
from client.task import LocalUpdates, TaskFactory
from fedquilt.config import Config, parse
from fedquilt.runs import RunFolder
from fedquilt.seeds import uniforms_for
from fedquilt.types import PatchSpec
from server.in_process import InProcessGrid
from server.loop import run_federation
from server.task import Deployment, Hooks

SPEC = PatchSpec((("scale", (2, 3)), ("shift", (4,))))
BASE = {"centre": np.linspace(-1, 1, SPEC.num_parameters, dtype=np.float32)}
PERSONAL = 3


class ToyTask:
    spec = SPEC
    personal_size = PERSONAL

    def __init__(self, config: Config, partition_id: int, num_partitions: int):
        self.client_ids_U = 100 + np.arange(partition_id, config.data.num_users, num_partitions)
        self._seed = config.data.seed

    def install(self, base: Mapping[str, np.ndarray]) -> None:
        self._centre_P = base["centre"]

    def _targets(self, ids_K: np.ndarray) -> np.ndarray:
        return self._centre_P + uniforms_for(self._seed, 0, ids_K, "target", len(self._centre_P)).astype(np.float32)

    def train(
        self, client_ids_K: np.ndarray, patch_P: np.ndarray, personal_KR: np.ndarray, round_: int, run_seed: int
    ) -> LocalUpdates:
        noise_KP = uniforms_for(run_seed, round_, client_ids_K, "noise", len(patch_P)).astype(np.float32) - 0.5
        gap_KP = self._targets(client_ids_K) - patch_P
        updates_KP = 0.5 * gap_KP + 0.1 * noise_KP + 0.01 * personal_KR[:, :1]
        loss_K = np.square(gap_KP).mean(axis=1)
        return LocalUpdates(updates_KP, 1 + client_ids_K % 7, personal_KR + np.float32(1), {"loss": loss_K})

    def evaluate(
        self, client_ids_K: np.ndarray, patch_P: np.ndarray, personal_KR: np.ndarray, part: str
    ) -> dict[str, np.ndarray]:
        loss_K = np.square(self._targets(client_ids_K) - patch_P).mean(axis=1)
        return {"loss": loss_K + (part == "test"), "rounds": personal_KR[:, 0]}


def toy_task(config: Config, partition_id: int, num_partitions: int) -> ToyTask:
    return ToyTask(config, partition_id, num_partitions)


def toy_config(**federation: object) -> Config:
    """24 users on 3 nodes, cohorts of 10, 4 rounds."""
    given = {"rounds": 4, "cohort_size": 10, "num_supernodes": 3, "evaluate_every": 2, "wait_timeout_s": 1.0}
    return parse({"name": "toy", "data": {"num_users": 24}, "federation": {**given, **federation}})


def toy_deployment() -> Deployment:
    return Deployment(SPEC, np.zeros(SPEC.num_parameters, np.float32), BASE)


def metrics_without_seconds(run: Path) -> list[str]:
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [json.dumps({k: v for k, v in record.items() if k != "seconds"}) for record in records]


def federate(tmp_path: Path, factory=toy_task, hooks: Hooks | None = None, grid=None, **federation):
    """-> (result, run folder) of the toy federation."""
    config = toy_config(**federation)
    run = RunFolder.create(tmp_path, config)
    grid = grid or InProcessGrid(make_client_app(factory), config.federation.num_supernodes)
    return run_federation(grid, config, toy_deployment(), run, hooks), run


def factory_of(task: type[ToyTask]) -> TaskFactory:
    return lambda config, partition_id, num_partitions: task(config, partition_id, num_partitions)


MEANS = Hooks(on_evaluation=lambda evaluation: evaluation.means())
