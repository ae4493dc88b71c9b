"""Users of the cloud's own log at moments of their past, for whom it ranks all items as their devices would."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from fedquilt.config import Config
from fedquilt.graphs.cohorts import MIN_CLICKS, CohortBuilder
from fedquilt.graphs.log import InteractionLog
from fedquilt.graphs.screening import local_graphs
from fedquilt.metrics import ragged
from fedquilt.seeds import generator_for
from fedquilt.types import PatchSpec
from models.kernel import Graphs, KernelWeights, all_scores, user_vectors
from server.root import one_thread

APART = 4  # clicks between two moments of a user
_AT_ONCE = 256  # moments


@dataclass(frozen=True, eq=False)
class Judges:
    """J moments. Their subgraphs are built once: what changes from round to round is the patch."""

    weights: KernelWeights
    spec: PatchSpec
    graphs: tuple[Graphs, ...]
    seen_JI: np.ndarray

    def scores(self, patch_P: np.ndarray | None) -> np.ndarray:
        """float32 [J, I] under the shared patch without inner steps; None: the base model's."""
        with one_thread(), torch.no_grad():  # with more threads sums, and so what is served, differ in the last bits
            return np.concatenate([self._scores(part, patch_P) for part in self.graphs])

    def _scores(self, graphs: Graphs, patch_P: np.ndarray | None) -> np.ndarray:
        patch = {}
        if patch_P is not None:
            views = self.spec.views(torch.from_numpy(np.array(patch_P, np.float32)))
            patch = {name: view.expand(len(graphs.recency), *view.shape) for name, view in views.items()}
        vectors = user_vectors(self.weights, graphs, patch or None)
        scores: np.ndarray = all_scores(self.weights, vectors, patch or None)[:, 0].numpy()
        return scores


def make_judges(config: Config, cloud: InteractionLog, base: Mapping[str, np.ndarray], spec: PatchSpec) -> Judges:
    """``defence.exposure_users`` users, drawn once a run among those with enough clicks in the cloud, each after all of
    its clicks there and at ``defence.exposure_moments`` - 1 earlier moments, ``APART`` clicks apart.
    """
    counts_U = np.diff(cloud.offsets)
    users_U = np.flatnonzero(counts_U >= MIN_CLICKS)
    rng = generator_for(config.seed, use="exposure-judges")
    chosen = np.sort(rng.choice(users_U, min(config.defence.exposure_users, len(users_U)), replace=False))
    parts, seen = [], []
    for back in range(0, APART * config.defence.exposure_moments, APART):
        log = cloud.where(cloud.places_C < np.repeat(counts_U - back, counts_U))
        builder = CohortBuilder(log, local_graphs(config.graph, config.screening, base), config.graph, config.meta)
        there = chosen[counts_U[chosen] - back >= MIN_CLICKS]
        for first in range(0, len(there), _AT_ONCE):
            users = there[first : first + _AT_ONCE]
            parts.append(Graphs.of(builder.serving_cohort(users))[-1:])
            seen.append(_seen(log, users))
    return Judges(KernelWeights.of(base), spec, tuple(parts), np.concatenate(seen))


def _seen(log: InteractionLog, users_U: np.ndarray) -> np.ndarray:
    seen_UI = np.zeros((len(users_U), log.num_items), bool)
    seen_UI[ragged(log.offsets, log.items_C, users_U)] = True
    return seen_UI
