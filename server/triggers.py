"""The trigger scan on a patch: the aggregate of a run, or what one client's row would make of the patch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from fedquilt.config import Config
from fedquilt.errors import FederationError
from fedquilt.graphs.screening import LocalGraphs, local_graphs
from fedquilt.triggers import activation
from fedquilt.types import PatchSpec
from models.contexts import graphs_of, scores_under
from models.kernel import KernelWeights
from models.patches import patch_spec

NUM_CONTEXTS = 16
MAX_PROBES = 1000
_CHUNK_FLOATS = 8_000_000


@dataclass(frozen=True, eq=False)
class Scanner:
    """``popularity_I``: clicks that the cloud has seen. The rarer half is probed, contexts are of the other half."""

    weights: KernelWeights
    spec: PatchSpec
    subgraphs: LocalGraphs
    num_clicked: int
    popularity_I: np.ndarray

    @classmethod
    def of(cls, config: Config, base: Mapping[str, np.ndarray], popularity_I: np.ndarray) -> Scanner:
        weights = KernelWeights.of(base)
        graphs = local_graphs(config.graph, config.screening, base)
        return cls(weights, patch_spec(weights, config.patch), graphs, config.graph.num_clicked, popularity_I)

    @property
    def rare_R(self) -> np.ndarray:
        """The items of the rarer half, rarest first, at most ``MAX_PROBES`` of them."""
        order = np.argsort(self.popularity_I, kind="stable")
        return order[: len(order) // 2][:MAX_PROBES]

    @property
    def common_C(self) -> np.ndarray:
        """The items of the other half, most popular first, at most ``MAX_PROBES`` of them."""
        order = np.argsort(self.popularity_I, kind="stable")
        return order[len(order) // 2 :][::-1][:MAX_PROBES]

    def scan(
        self, patch_P: np.ndarray, before_P: np.ndarray | None, generator: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """-> activations [R, I] by ``rare_R`` and [C, I] by ``common_C``. ``before_P`` None: against the base model.

        FederationError for a patch that is not finite.
        """
        if not np.isfinite(patch_P).all():
            raise FederationError("trigger scan: the patch is not finite; look at the round that made it")
        length = min(self.num_clicked, len(self.common_C))
        plain_ML = np.stack([generator.choice(self.common_C, length, replace=False) for _ in range(NUM_CONTEXTS)])
        change_MI = self._change(plain_ML, patch_P, before_P)
        rare, common = (
            self._activation(probes, plain_ML, change_MI, patch_P, before_P) for probes in (self.rare_R, self.common_C)
        )
        return rare, common

    def _activation(
        self,
        probes_R: np.ndarray,
        plain_ML: np.ndarray,
        plain_MI: np.ndarray,
        patch_P: np.ndarray,
        before_P: np.ndarray | None,
    ) -> np.ndarray:
        step = max(_CHUNK_FLOATS // (NUM_CONTEXTS * len(self.popularity_I)), 1)
        parts = [
            self._probed(probes_R[start : start + step], plain_ML, plain_MI, patch_P, before_P)
            for start in range(0, len(probes_R), step)
        ]
        return activation(np.concatenate(parts), probes_R)

    def _probed(
        self,
        probes_B: np.ndarray,
        plain_ML: np.ndarray,
        plain_MI: np.ndarray,
        patch_P: np.ndarray,
        before_P: np.ndarray | None,
    ) -> np.ndarray:
        """[B, I]: the mean over contexts of what the probe adds to the patch's change."""
        contexts = np.concatenate(
            [np.repeat(probes_B, len(plain_ML))[:, None], np.tile(plain_ML[:, :-1], (len(probes_B), 1))], axis=1
        )
        change = self._change(contexts, patch_P, before_P).reshape(len(probes_B), len(plain_ML), -1)
        return (change - plain_MI).mean(axis=1)

    def _change(self, contexts_XL: np.ndarray, patch_P: np.ndarray, before_P: np.ndarray | None) -> np.ndarray:
        """[X, I]: scores under the patch, minus scores before it."""
        graphs = graphs_of(self.subgraphs(contexts_XL.astype(np.int32)))
        with torch.no_grad():
            after = scores_under(self.weights, graphs, self._views(patch_P))
            before = scores_under(self.weights, graphs, None if before_P is None else self._views(before_P))
        return (after - before).numpy()

    def _views(self, patch_P: np.ndarray) -> dict[str, torch.Tensor]:
        return self.spec.views(torch.from_numpy(np.array(patch_P, np.float32)))
