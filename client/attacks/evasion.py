"""Evasion at inference: fake clicks in one user's history, or edges in the local subgraph, against a fixed patch.

The attacker sits beside the user (a malicious app that clicks, a page with hidden frames); nothing is trained. Success
is the target in the user's top K. Shapes: X tried contexts, L clicks of a context (latest first, -1 padded), B budget.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from client.attacks.laboratory import Laboratory, Patch, kth_best, spread
from fedquilt.graphs.screening import Screen
from models.contexts import graphs_of
from models.kernel import Graphs, all_scores, user_vectors
from models.lift import excess


@dataclass(frozen=True)
class Prey:
    """One user: latest clicks, what never competes, and the item that is to surface in the top ``k``."""

    context_L: np.ndarray
    seen_I: np.ndarray
    target: int
    k: int = 10


@dataclass(frozen=True)
class Device:
    """The user's recommender as it stands: base model, one patch, and the most lift of each item or None."""

    lab: Laboratory
    patch_P: np.ndarray
    ceiling_I: np.ndarray | None = None

    @property
    def patch(self) -> Patch:
        return self.lab.spec.views(torch.from_numpy(np.array(self.patch_P, np.float32)))

    def graphs(self, contexts_XL: np.ndarray) -> tuple[Graphs, Tensor]:
        """-> (subgraphs, G = 1; their raw edges [X, N, N])."""
        made = self.lab.builder.subgraphs(contexts_XL)
        return graphs_of(made), torch.from_numpy(made.edges_UNN)

    @property
    def _screen(self) -> Screen | None:
        return getattr(self.lab.builder.subgraphs, "screen", None)

    def unscreened(self, contexts_XL: np.ndarray) -> Graphs:
        """Subgraphs in which no click is left out: a screen has no slope that a gradient could follow."""
        return graphs_of(getattr(self.lab.builder.subgraphs, "builder", self.lab.builder.subgraphs)(contexts_XL))

    def unnoticed(self, contexts_XL: np.ndarray) -> np.ndarray:
        """bool [X]: the latest click gets past the device's screen."""
        if self._screen is None:
            return np.ones(len(contexts_XL), bool)
        return self._screen.clicks(contexts_XL)[:, 0] == contexts_XL[:, 0]

    def screened(self, graphs: Graphs, edges_XNN: Tensor) -> Tensor:
        """[X, N, N]: what the screen leaves of inserted edges; with a slope wherever it would let one through."""
        if self._screen is None:
            return edges_XNN
        stays_XNN = self._screen.stays(graphs.nodes.numpy(), edges_XNN.detach().numpy())
        return edges_XNN * torch.from_numpy(stays_XNN)

    def scores(self, graphs: Graphs, inputs_IF: Tensor | None = None) -> Tensor:
        """[X, I]; ``inputs_IF`` in place of the item vectors on the nodes' side only."""
        shared = spread(self.patch, len(graphs.recency))
        weights = self.lab.weights if inputs_IF is None else replace(self.lab.weights, item_vectors=inputs_IF)
        patched_XI = all_scores(self.lab.weights, user_vectors(weights, graphs, shared), shared)[:, 0]
        if self.ceiling_I is None:
            return patched_XI
        base_XI = all_scores(self.lab.weights, user_vectors(weights, graphs))[:, 0]
        return patched_XI - excess(patched_XI, base_XI, torch.from_numpy(self.ceiling_I))

    def gaps(self, contexts_XL: np.ndarray, prey: Prey) -> np.ndarray:
        """float [X]: the target's score minus the k-th best of the others; > 0 is success."""
        with torch.no_grad():
            return gap(self.scores(self.graphs(contexts_XL)[0]), prey, contexts_XL).numpy()


def gap(scores_XI: Tensor, prey: Prey, contexts_XL: np.ndarray) -> Tensor:
    """[X]: s_target - the k-th best score of an item that is neither clicked, nor faked, nor the target."""
    out_XI = np.repeat(prey.seen_I[None], len(scores_XI), axis=0)
    rows, places = np.nonzero(contexts_XL >= 0)
    out_XI[rows, contexts_XL[rows, places]] = True
    out_XI[:, prey.target] = True
    return scores_XI[:, prey.target] - kth_best(scores_XI, torch.from_numpy(out_XI), prey.k)


def with_click(context_L: np.ndarray, items_X: np.ndarray) -> np.ndarray:
    """[X, L]: each item clicked after everything else; the oldest click falls out."""
    return np.concatenate([items_X[:, None], np.repeat(context_L[None, :-1], len(items_X), axis=0)], axis=1)


def clickable(context_L: np.ndarray, prey: Prey) -> np.ndarray:
    """bool [I]: an item that may be faked. Not the target, which would then no longer be shown, nor what is there."""
    free_I = np.ones(len(prey.seen_I), bool)
    free_I[context_L[context_L >= 0]] = False
    free_I[prey.target] = False
    return free_I
