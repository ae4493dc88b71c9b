"""The cloud's own root data: the clicks that it may see anyway, as an update of its own and as a judge of patches.

Root data are as good as who clicked them: a liar whose clicks the cloud has seen is in them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property

import numpy as np
import torch

from fedquilt.config import Config
from fedquilt.errors import ConfigError
from fedquilt.graphs.cohorts import MIN_CLICKS, CohortBuilder
from fedquilt.graphs.log import InteractionLog
from fedquilt.graphs.subgraph import SubgraphBuilder
from fedquilt.metrics import ragged
from fedquilt.privacy.clipping import clip_rows
from fedquilt.seeds import generator_for, key_for
from models.kernel import Graphs, KernelWeights, all_scores, user_vectors
from models.patches import patch_spec
from models.personalise import Personaliser
from server.robustness import ndcg_of
from strategies.aggregation import make_aggregation, needs_root
from strategies.cohort import Draw, draw_cohort

USE = "root-cohort"
_AT_ONCE = 128  # users


def wants_root(config: Config) -> bool:
    return math.isfinite(config.defence.rollback_tolerance) or needs_root(make_aggregation(config.federation))


def _asks(config: Config) -> str:
    """What in the configuration asks for the cloud's own clicks; "" for nothing."""
    defence = config.defence
    asking = {
        f"federation.aggregator = {config.federation.aggregator!r}": needs_root(make_aggregation(config.federation)),
        f"defence.rollback_tolerance = {defence.rollback_tolerance:g}": math.isfinite(defence.rollback_tolerance),
        f"defence.exposure_share = {defence.exposure_share:g}": math.isfinite(defence.exposure_share),
        f"defence.lift_quantile = {defence.lift_quantile:g}": defence.lift_quantile > 0,
    }
    return next((text for text, asks in asking.items() if asks), "")


def require_root(config: Config, cloud: InteractionLog) -> None:
    """ConfigError where root data are asked for and the cloud has none."""
    asked = _asks(config)
    if not asked or len(_users(cloud)):
        return
    raise ConfigError(
        f"{asked} needs root data, and the cloud has seen no user's {MIN_CLICKS} clicks (split.cloud_share ="
        f" {config.split.cloud_share:g}): raise split.cloud_share, or do without"
    )


class RootData:
    """``cloud`` holds the clicks that the cloud sees; ``base`` is what it deploys, neighbours included."""

    def __init__(self, config: Config, cloud: InteractionLog, base: Mapping[str, np.ndarray]):
        self.config, self.cloud = config, cloud
        self.users_U = _users(cloud)
        self._weights = KernelWeights.of(base)
        self.spec = patch_spec(self._weights, config.patch)
        self._personaliser = Personaliser(self._weights, self.spec, config.meta)
        tables, graph = (base["neighbour_items"], base["neighbour_weights"]), config.graph
        self._subgraphs = SubgraphBuilder(*tables, graph.num_nodes, graph.num_clicked, graph.window)
        self._builder = CohortBuilder(cloud, self._subgraphs, graph, config.meta)

    def update(self, round_: int, patch_P: np.ndarray) -> tuple[np.ndarray, Draw]:
        """Mean of what ``defence.root_users`` users would have sent from their clicks in the cloud, float32 [P].

        The device's own step and clipping, moments drawn under a key of the cloud's, no personal patch. Bit for bit the
        same for the same round and patch.
        """
        size, seed = self.config.defence.root_users, self.config.seed
        users_K, draw = draw_cohort(seed, round_, self.users_U, size, USE)
        total_P = np.zeros(self.spec.num_parameters, np.float64)
        with one_thread():
            for chunk in _chunks(users_K):
                cohort = self._builder.training_cohort(chunk, round_, key_for(seed, use="root-moments"))
                nothing_UR = np.zeros((len(chunk), self._personaliser.personal_size), np.float32)
                step = self._personaliser.outer_step(cohort, patch_P, nothing_UR)
                rows_KP, _ = clip_rows(step.updates_UP, self.config.federation.clipping_norm)
                total_P += rows_KP.sum(axis=0, dtype=np.float64)
        return (total_P / len(users_K)).astype(np.float32), draw

    def ndcg(self, patch_P: np.ndarray) -> float:
        """NDCG@10 of the judges' latest click in the cloud among all items that they had not clicked before.

        From the subgraph of their clicks before it, under the shared patch without inner steps. 0 where scores are not
        finite.
        """
        with one_thread(), torch.no_grad():
            total = sum(len(users) * self._ndcg(users, patch_P) for users in _chunks(self._judges))
        return total / len(self._judges)

    def _ndcg(self, users_U: np.ndarray, patch_P: np.ndarray) -> float:
        present = Graphs.of(self._before_last.serving_cohort(users_U))[-1:]
        patch = self._personaliser.shared(patch_P, len(users_U))
        scores_UI = all_scores(self._weights, user_vectors(self._weights, present, patch), patch)[:, 0].numpy()
        if not np.isfinite(scores_UI).all():
            return 0.0
        seen_UI = np.zeros(scores_UI.shape, bool)
        seen_UI[ragged(self._before_last.log.offsets, self._before_last.log.items_C, users_U)] = True
        return ndcg_of(scores_UI, self.cloud.items_C[self.cloud.offsets[users_U + 1] - 1], seen_UI)

    @cached_property
    def _judges(self) -> np.ndarray:
        """Users, drawn once a run."""
        rng = generator_for(self.config.seed, use="root-judges")
        count = min(self.config.defence.rollback_users, len(self.users_U))
        return np.sort(rng.choice(self.users_U, count, replace=False))

    @cached_property
    def _before_last(self) -> CohortBuilder:
        """Without the last click of those who have enough."""
        kept_C = np.ones(len(self.cloud), bool)
        kept_C[self.cloud.offsets[self.users_U + 1] - 1] = False
        one = self.config.meta.model_copy(update={"num_contexts": 1, "num_negatives": 0})
        return CohortBuilder(self.cloud.where(kept_C), self._subgraphs, self.config.graph, one)


def _users(cloud: InteractionLog) -> np.ndarray:
    return np.flatnonzero(np.diff(cloud.offsets) >= MIN_CLICKS)


def _chunks(users: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(users), _AT_ONCE):
        yield users[start : start + _AT_ONCE]


@contextmanager
def one_thread() -> Iterator[None]:
    """So that the bits do not depend on the machine's cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
