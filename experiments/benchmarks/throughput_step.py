"""Users per second of the whole client step: clicks -> subgraphs -> second-order MAML -> clipped updates.

python -m experiments.benchmarks.throughput_step --users 4096        # batched, OMP_NUM_THREADS threads
python -m experiments.benchmarks.throughput_step --users 256 --loop 1   # the same maths, one user at a time
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from torch import Tensor

from client.recommend import RecommendTask
from experiments.benchmarks.throughput_common import (
    CLIPPING_NORM,
    Row,
    base_for,
    best_time,
    config_for,
    rates,
    report,
    task_for,
)
from fedquilt.graphs.cohorts import CohortBuilder
from fedquilt.graphs.subgraph import SubgraphBuilder
from fedquilt.privacy.clipping import clip_rows
from fedquilt.types import Cohort
from models.kernel import KernelWeights

POPULATION = 6_000
ROUND, SEED = 1, 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, required=True)
    parser.add_argument("--population", type=int, default=POPULATION)
    parser.add_argument("--parts", default="bottleneck", help="of the patch, separated by commas")
    parser.add_argument("--loop", type=int, default=0, help="1: one user at a time (bottleneck patch only)")
    parser.add_argument("--repeats", type=int, default=20)
    given = parser.parse_args()
    report(measure(given.users, given.population, given.parts, bool(given.loop), given.repeats))


def measure(users: int, population: int, parts: str, loop: bool, repeats: int) -> Row:
    task, patch_P = task_for(config_for(population, parts.split(",")))
    ids_U = task.client_ids_U[:users]
    batched = Batched(task, patch_P)
    row: Row = {"step": "loop" if loop else "client-step", "parts": parts, "users_at_once": len(ids_U)}
    if loop:
        one_by_one = OneByOne(task, patch_P)
        row["largest_difference"] = float(np.abs(one_by_one(ids_U) - batched(ids_U)).max())
        return row | rates(len(ids_U), *best_time(lambda: one_by_one(ids_U), repeats))
    calls = max(1, 256 // len(ids_U))
    times = best_time(lambda: [batched(ids_U) for _ in range(calls)], repeats)
    return row | rates(calls * len(ids_U), *times)


class Batched:
    """Ours: the node's task, then what the device does before anything leaves it."""

    def __init__(self, task: RecommendTask, patch_P: np.ndarray):
        self.task, self.patch_P = task, patch_P

    def __call__(self, ids_U: np.ndarray) -> np.ndarray:
        nothing_yet_UR = np.zeros((len(ids_U), self.task.personal_size), np.float32)
        local = self.task.train(ids_U, self.patch_P, nothing_yet_UR, ROUND, SEED)
        return clip_rows(local.updates_KP, CLIPPING_NORM, in_place=True)[0]


class OneByOne:
    """The same maths as anyone would write it for one user, with autograd. Subgraphs are built for all users at once,
    which favours it.
    """

    def __init__(self, task: RecommendTask, patch_P: np.ndarray):
        config, base = task.config, base_for(task.config.data.num_users)
        graph = config.graph
        neighbours = base["neighbour_items"], base["neighbour_weights"]
        subgraphs = SubgraphBuilder(*neighbours, graph.num_nodes, graph.num_clicked, graph.window)
        self.cohorts = CohortBuilder(task.split.train, subgraphs, graph, config.meta)
        self.weights = KernelWeights.of(base)
        self.learning_rate = config.meta.inner_learning_rate
        self.support_weight = config.meta.support_weight
        self.patch = {name: torch.from_numpy(view.copy()) for name, view in task.spec.views(patch_P).items()}

    def __call__(self, ids_U: np.ndarray) -> np.ndarray:
        cohort = self.cohorts.training_cohort(ids_U, ROUND, SEED)
        return np.stack([self.update(cohort, user) for user in range(len(ids_U))])

    def update(self, cohort: Cohort, user: int) -> np.ndarray:
        """Clipped update [P]: MAML with one second-order step, from subgraph 0 to subgraph 1."""
        start = {name: tensor.clone().requires_grad_() for name, tensor in self.patch.items()}
        support = self.loss(cohort, user, 0, start)
        inner = torch.autograd.grad(support, list(start.values()), create_graph=True)
        adapted = {name: p - self.learning_rate * g for (name, p), g in zip(start.items(), inner, strict=True)}
        query = self.loss(cohort, user, 1, adapted)
        outer = (1 - self.support_weight) * query + self.support_weight * support
        gradients = torch.autograd.grad(outer, list(start.values()))
        update_P = -torch.cat([gradient.reshape(-1) for gradient in gradients])
        return (update_P * (CLIPPING_NORM / update_P.norm()).clamp(max=1)).numpy()

    def loss(self, cohort: Cohort, user: int, graph: int, patch: dict[str, Tensor]) -> Tensor:
        targets = torch.from_numpy(cohort.targets_UGT[user, graph]).long()
        assert cohort.negatives_UGTM is not None  # the benchmark's configuration draws negatives
        negatives = torch.from_numpy(cohort.negatives_UGTM[user, graph])
        targets, negatives = targets[targets >= 0], negatives[targets >= 0]
        if not len(targets):
            return torch.zeros((), requires_grad=True) + sum(tensor.sum() for tensor in patch.values()) * 0
        vector = self.user_vector(cohort, user, graph, patch)
        scores_of_targets = self.weights.item_vectors[targets] @ vector + self.weights.item_bias[targets]
        scores = self.weights.item_vectors[negatives.clamp(min=0)] @ vector + self.weights.item_bias[negatives]
        rest = scores.masked_fill(negatives < 0, -1e9).logsumexp(1)
        return torch.nn.functional.softplus(rest - scores_of_targets).mean()

    def user_vector(self, cohort: Cohort, user: int, graph: int, patch: dict[str, Tensor]) -> Tensor:
        """[F], see ``models.kernel``."""
        weights = self.weights
        edges = torch.from_numpy(cohort.edges_UGNN[user, graph])
        adjacency = edges / edges.sum(1, keepdim=True).clamp(min=1e-12)
        recency = torch.from_numpy(cohort.recency_UGN[user, graph]).long()
        present = torch.from_numpy(cohort.node_mask_UGN[user, graph])
        hidden = weights.item_vectors[torch.from_numpy(cohort.nodes_UGN[user, graph])]
        hidden = hidden + torch.tanh(adjacency @ hidden @ weights.convolution[0])
        hidden = hidden + torch.tanh(hidden @ patch["bottleneck.0.down"]) @ patch["bottleneck.0.up"]
        hidden = hidden + torch.tanh(adjacency @ hidden @ weights.convolution[1])
        clicked = present & (recency >= 0)
        attention = weights.pool_logits[:, recency[clicked]].softmax(1)
        pooled = [*(attention @ hidden[clicked])]
        neighbours = hidden[present & (recency < 0)]
        pooled.append(neighbours.mean(0) if len(neighbours) else torch.zeros(weights.dim))
        vector = torch.cat(pooled) @ weights.mix
        return vector + torch.tanh(vector @ patch["bottleneck.1.down"]) @ patch["bottleneck.1.up"]


if __name__ == "__main__":
    main()
