"""Nodes on which malicious users train on forged clicks: a task factory around the recommender's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from client.attacks.contract import ClickAttack, Clicks
from client.attacks.logs import histories_of, replaced
from client.attacks.plan import Plan
from client.recommend import RecommendTask, make_task
from client.task import LocalTask, LocalUpdates, under
from fedquilt.config import Config
from fedquilt.graphs.datasets import load_split
from fedquilt.graphs.log import InteractionLog
from fedquilt.seeds import generator_for
from fedquilt.types import PatchSpec


def forged(log: InteractionLog, attack: ClickAttack, plan: Plan) -> InteractionLog:
    """The log as the attack leaves it. Users without a click stay without."""
    held = {user: items for user, items in histories_of(log, plan.malicious_M).items() if len(items)}
    clicks = Clicks(
        histories=held,
        num_items=log.num_items,
        targets_T=plan.targets_T,
        generator=generator_for(plan.seed, use="attack-clicks"),
        knows=attack.knows,
        chart_I=log.popularity_I,
    )
    return replaced(log, attack.histories(clicks) if held else {})


@dataclass(frozen=True, eq=False)
class PoisonedTasks:
    """A ``TaskFactory``. Its tasks judge everybody by true clicks and train the malicious on forged ones."""

    attack: ClickAttack
    plan: Plan

    def __call__(self, config: Config, partition_id: int, num_partitions: int) -> LocalTask:
        split = load_split(config.data, config.split)
        poisoned = replace(split, train=forged(split.train, self.attack, self.plan))
        mine = self.plan.malicious_M[self.plan.malicious_M % num_partitions == partition_id]
        honest = make_task(config, partition_id, num_partitions)
        return PoisonedTask(honest, RecommendTask(config, poisoned, mine), self.plan)


@dataclass(frozen=True)
class PoisonedTask:
    """A ``LocalTask`` of which the plan's malicious users train on ``forged`` while the attack lasts."""

    honest: LocalTask
    forged: LocalTask
    plan: Plan

    @property
    def spec(self) -> PatchSpec:
        return self.honest.spec

    @property
    def client_ids_U(self) -> np.ndarray:
        return self.honest.client_ids_U

    @property
    def personal_size(self) -> int:
        return self.honest.personal_size

    def install(self, base: Mapping[str, np.ndarray]) -> None:
        self.honest.install(base)
        self.forged.install(base)

    def train(
        self, client_ids_K: np.ndarray, patch_P: np.ndarray, personal_KR: np.ndarray, round_: int, run_seed: int
    ) -> LocalUpdates:
        mine_K = self.plan.is_malicious(client_ids_K) & self.plan.active(round_)
        if not mine_K.any():
            return self.honest.train(client_ids_K, patch_P, personal_KR, round_, run_seed)
        parts = [
            task.train(client_ids_K[rows_K], patch_P, personal_KR[rows_K], round_, run_seed)
            for task, rows_K in ((self.honest, ~mine_K), (self.forged, mine_K))
        ]
        order_K = np.argsort(np.concatenate([np.flatnonzero(~mine_K), np.flatnonzero(mine_K)]))
        return _joined(parts[0], parts[1], order_K)

    def evaluate(
        self, client_ids_K: np.ndarray, patch_P: np.ndarray, personal_KR: np.ndarray, part: str
    ) -> Mapping[str, np.ndarray]:
        return self.honest.evaluate(client_ids_K, patch_P, personal_KR, part)

    def under(self, ceiling_I: np.ndarray) -> PoisonedTask:
        """Everybody is judged under a ceiling on lift, and trains as before."""
        return replace(self, honest=under(self.honest, ceiling_I))


def _joined(a: LocalUpdates, b: LocalUpdates, order_K: np.ndarray) -> LocalUpdates:
    def both(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.concatenate([x, y])[order_K]

    personal = None
    if a.personal_KR is not None and b.personal_KR is not None:
        personal = both(a.personal_KR, b.personal_KR)
    metrics = {name: both(values, b.metrics[name]) for name, values in a.metrics.items() if name in b.metrics}
    return LocalUpdates(both(a.updates_KP, b.updates_KP), both(a.num_examples_K, b.num_examples_K), personal, metrics)
