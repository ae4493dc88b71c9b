"""Evasion by edges: co-click edges inserted between nodes of one user's subgraph."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from client.attacks.contract import ATTACKS, OWN
from client.attacks.evasion import Device, Prey, gap
from models.kernel import Graphs


@ATTACKS.register("evasion-edges")
@dataclass(frozen=True)
class EvasionEdges:
    """Inserts up to ``budget`` symmetric edges of weight ``weight`` between nodes that have none, one after the other.

    ``search``: gradient takes the ``shortlist`` pairs with the largest derivative of the gap by their edge and keeps
    the one that helps most when tried; greedy tries ``candidates`` random pairs. Nodes stay as they are, so this is
    weaker than fake clicks and harder to see. An edge that does not help is not inserted.
    """

    search: str = "gradient"
    budget: int = 5
    weight: float = 1.0
    candidates: int = 64
    shortlist: int = 16
    kind = "inference"
    goal = "promote"
    knows = frozenset({OWN})
    source = "Geisler et al. 2021, PRBCD, arXiv:2110.14038 (one block, greedy rounding)"

    def __post_init__(self) -> None:
        if self.search not in ("greedy", "gradient"):
            raise ValueError(f"search must be greedy or gradient, got {self.search!r}")

    def gaps(self, device: Device, prey: Prey, generator: np.random.Generator) -> np.ndarray:
        """float [B + 1]: the gap with 0, 1, ..., ``budget`` inserted edges. > 0 is success."""
        context_XL = prey.context_L[None]
        graphs, edges_XNN = device.graphs(context_XL)
        real = np.flatnonzero((graphs.clicked | graphs.neighbour)[0, 0].numpy())
        edges = edges_XNN[0]
        found = [self._gap(device, prey, graphs, edges[None], context_XL)[0]]
        for _ in range(self.budget):
            pairs = self._pairs(device, prey, graphs, edges, real, context_XL, generator)
            tried = torch.stack([_inserted(edges, a, b, self.weight) for a, b in pairs]) if len(pairs) else edges[None]
            gaps_X = self._gap(device, prey, graphs, tried, context_XL)
            best = int(np.argmax(gaps_X))
            if gaps_X[best] > found[-1]:
                edges = tried[best]
            found.append(max(found[-1], float(gaps_X[best])))
        return np.array(found)

    def _pairs(
        self,
        device: Device,
        prey: Prey,
        graphs: Graphs,
        edges: Tensor,
        real: np.ndarray,
        context_XL: np.ndarray,
        generator: np.random.Generator,
    ) -> np.ndarray:
        """[X, 2] node pairs a < b without an edge."""
        first, second = np.triu_indices(len(real), 1)
        pairs = np.stack([real[first], real[second]], axis=1)
        pairs = pairs[(edges.numpy()[pairs[:, 0], pairs[:, 1]] == 0)]
        if self.search == "greedy" or not len(pairs):
            return generator.permutation(pairs)[: self.candidates]
        leaf = edges.clone().requires_grad_()
        scores_XI = device.scores(_with_edges(graphs, device.screened(graphs, leaf[None])))
        (slope,) = torch.autograd.grad(gap(scores_XI, prey, context_XL).sum(), leaf)
        gains = (slope + slope.T).numpy()[pairs[:, 0], pairs[:, 1]]
        return pairs[np.argsort(-gains, kind="stable")[: self.shortlist]]

    @staticmethod
    def _gap(device: Device, prey: Prey, graphs: Graphs, edges_XNN: Tensor, context_XL: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            many = _with_edges(graphs, edges_XNN)
            scores_XI = device.scores(_with_edges(graphs, device.screened(many, edges_XNN)))
            return gap(scores_XI, prey, np.repeat(context_XL, len(edges_XNN), axis=0)).numpy()


def _with_edges(graphs: Graphs, edges_XNN: Tensor) -> Graphs:
    """One user's graph, X times, with these edges."""
    count = len(edges_XNN)
    return replace(
        graphs,
        nodes=graphs.nodes.expand(count, -1),
        recency=graphs.recency.expand(count, -1, -1),
        clicked=graphs.clicked.expand(count, -1, -1),
        neighbour=graphs.neighbour.expand(count, -1, -1),
        adjacency=edges_XNN / edges_XNN.sum(-1, keepdim=True).clamp(min=1e-12),
    )


def _inserted(edges: Tensor, a: int, b: int, weight: float) -> Tensor:
    other = edges.clone()
    other[a, b] = other[b, a] = weight
    return other
