"""pfl-research's kind of task through our whole path, on one core: many tiny users, one full-batch step each, central
noise.

    OMP_NUM_THREADS=1 python -m experiments.benchmarks.throughput_pfl --users 1000 --rounds 20
    python bench_pfl.py --users 1000 --rounds 20 --impl vmap       # the peer script, without pfl; --impl pfl with it

An MLP 32 -> 100 -> 8 (4,108 parameters), 32 samples a user, one SGD step of .1, user clipping at .5, Gaussian noise of
.5 on the sum. ``--impl vmap`` here is the plain loop over chunks of ``torch.func.vmap`` that the peer script has, and
``--impl ours`` is ServerApp loop, in-process grid, ClientApp, PatchStrategy. Both start from the peer script's weights
and data; ``--save`` keeps the mean update of round 1 before noise, in the peer script's sign.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from client.app import make_client_app
from client.task import LocalUpdates
from experiments.benchmarks.throughput_common import CLIPPING_NORM, Row, best_time, rates, report
from fedquilt.config import Config, parse
from fedquilt.runs import RunFolder
from fedquilt.types import PatchSpec
from server.in_process import InProcessGrid
from server.loop import run_federation
from server.task import Deployment, Hooks
from strategies.rules import State

INPUTS, HIDDEN, CLASSES, SAMPLES, LEARNING_RATE, SIGMA = 32, 100, 8, 32, 0.1, 1.0
CHUNK = 250  # the peer script's; ours takes the same
SPEC = PatchSpec(
    (("0.weight", (HIDDEN, INPUTS)), ("0.bias", (HIDDEN,)), ("2.weight", (CLASSES, HIDDEN)), ("2.bias", (CLASSES,)))
)


@cache
def data(num_users: int) -> tuple[Tensor, Tensor]:
    """Inputs [U, 32, 32] and classes [U, 32], the peer script's."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(num_users, SAMPLES, INPUTS, generator=generator)
    truth = torch.randn(INPUTS, CLASSES, generator=generator)
    offsets = torch.randn(num_users, 1, CLASSES, generator=generator)
    return inputs, (inputs @ truth + offsets).argmax(-1)


def initial() -> dict[str, Tensor]:
    torch.manual_seed(1)
    net = torch.nn.Sequential(torch.nn.Linear(INPUTS, HIDDEN), torch.nn.ReLU(), torch.nn.Linear(HIDDEN, CLASSES))
    return {name: parameter.detach().clone() for name, parameter in net.named_parameters()}


def flat(tensors: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([tensors[name].reshape(-1) for name, _ in SPEC.shapes])


class MlpTask:
    """One step from the shared patch, so the forward pass is one product for all users; the gradient by hand."""

    spec = SPEC
    personal_size = 0

    def __init__(self, config: Config, partition_id: int, num_partitions: int):
        self.client_ids_U = np.arange(partition_id, config.data.num_users, num_partitions)
        self.inputs, self.classes = data(config.data.num_users)

    def install(self, base: Mapping[str, np.ndarray]) -> None:
        """Nothing is frozen."""

    def train(
        self, client_ids_K: np.ndarray, patch_P: np.ndarray, personal_KR: np.ndarray, round_: int, run_seed: int
    ) -> LocalUpdates:
        updates_KP = np.empty((len(client_ids_K), SPEC.num_parameters), np.float32)
        weights = SPEC.views(torch.from_numpy(patch_P))
        ids_K = torch.tensor(client_ids_K)
        with torch.no_grad():
            for start in range(0, len(ids_K), CHUNK):
                rows = slice(start, start + CHUNK)
                self._step(weights, ids_K[rows], SPEC.views(torch.from_numpy(updates_KP[rows])))
        return LocalUpdates(updates_KP, np.full(len(client_ids_K), SAMPLES))

    def _step(self, weights: Mapping[str, Tensor], ids_K: Tensor, out: Mapping[str, Tensor]) -> None:
        """Writes -learning rate · gradient of the mean cross entropy, per user."""
        inputs, classes = self.inputs[ids_K], self.classes[ids_K]
        hidden = torch.nn.functional.linear(inputs, weights["0.weight"], weights["0.bias"]).relu_()
        wrong = torch.nn.functional.linear(hidden, weights["2.weight"], weights["2.bias"]).softmax(-1)
        wrong.scatter_add_(2, classes[..., None], wrong.new_full((1, 1, 1), -1.0).expand(*classes.shape, 1))
        wrong *= -LEARNING_RATE / SAMPLES
        before = (wrong @ weights["2.weight"]).mul_(hidden.sign())
        out["2.weight"].copy_(torch.bmm(wrong.transpose(1, 2), hidden))
        out["0.weight"].copy_(torch.bmm(before.transpose(1, 2), inputs))
        torch.sum(wrong, 1, out=out["2.bias"])
        torch.sum(before, 1, out=out["0.bias"])

    def evaluate(
        self, client_ids_K: np.ndarray, patch_P: np.ndarray, personal_KR: np.ndarray, part: str
    ) -> Mapping[str, np.ndarray]:
        return {"users": np.ones(len(client_ids_K))}


@dataclass(frozen=True)
class NoisyMean:
    """Mean plus Gaussian noise of standard deviation ``sigma`` · clipping norm / K, keyed by round."""

    sigma: float = SIGMA
    seed: int = 0
    sensitivity = 2.0
    breakdown = 0.0

    def __call__(self, updates_KP: Tensor, weights_K: Tensor, state: State) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed + int(state.get("rounds", np.zeros(1))[0]))
        noise_P = torch.randn(updates_KP.shape[1], generator=generator) * (self.sigma * CLIPPING_NORM)
        return weights_K @ updates_KP + noise_P / len(updates_KP)

    def next_state(self, updates_KP: Tensor, weights_K: Tensor, state: State) -> State:
        return {"rounds": state.get("rounds", np.zeros(1)) + 1}


def ours(users: int, rounds: int, sigma: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """-> wall and processor seconds of each round after the first, the patch at the end."""
    config = parse(
        {
            "data": {"num_users": users},
            "server_optimizer": {"name": "sgd", "learning_rate": 1.0, "decay": 0.0},
            "federation": {
                "rounds": rounds,
                "cohort_size": users,
                "num_supernodes": 1,
                "clipping_norm": CLIPPING_NORM,
                "upload_entries": 0,
                "evaluate_every": 0,
                "checkpoint_every": 10,
                "aggregator": "experiments.benchmarks.throughput_pfl:NoisyMean",
                "aggregator_options": {"sigma": sigma},
            },
        }
    )
    clocks = [(time.perf_counter(), time.process_time())]
    hooks = Hooks(on_round=lambda record: clocks.append((time.perf_counter(), time.process_time())))
    with tempfile.TemporaryDirectory() as folder:
        run = RunFolder.create(folder, config)
        deployment = Deployment(SPEC, flat(initial()).numpy(), {})
        result = run_federation(InProcessGrid(make_client_app(MlpTask), 1), config, deployment, run, hooks)
    wall_R, cpu_R = np.diff(np.array(clocks), axis=0).T
    return wall_R[1:], cpu_R[1:], result.patch_P


def plain_vmap(users: int, rounds: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """-> wall and processor seconds of each round after the first, the mean update of round 1 before noise."""
    inputs, classes = data(users)
    functional, names = torch.nn.functional, [name for name, _ in SPEC.shapes]

    def loss(weights: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        hidden = functional.relu(functional.linear(x, weights["0.weight"], weights["0.bias"]))
        return functional.cross_entropy(functional.linear(hidden, weights["2.weight"], weights["2.bias"]), y)

    def update(weights: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        gradients = torch.func.grad(loss)(weights, x, y)
        return torch.cat([-LEARNING_RATE * gradients[name].reshape(-1) for name in names])

    batched = torch.func.vmap(update, in_dims=(None, 0, 0))
    weights, clocks, first = initial(), [(time.perf_counter(), time.process_time())], torch.empty(0)
    for round_ in range(rounds):
        total = torch.zeros(SPEC.num_parameters)
        for start in range(0, users, CHUNK):
            rows = batched(weights, inputs[start : start + CHUNK], classes[start : start + CHUNK])
            total += (CLIPPING_NORM / rows.norm(dim=1)).clamp(max=1.0) @ rows
        first = total / users if round_ == 0 else first
        total += torch.randn(SPEC.num_parameters) * SIGMA * CLIPPING_NORM
        weights = SPEC.views(flat(weights) + total / users)
        clocks.append((time.perf_counter(), time.process_time()))
    wall_R, cpu_R = np.diff(np.array(clocks), axis=0).T
    return wall_R[1:], cpu_R[1:], first.numpy()


def arithmetic(users: int, rounds: int) -> tuple[float, float]:
    """(wall, processor) seconds of a round's ``MlpTask.train``, called directly."""
    task = MlpTask(parse({"data": {"num_users": users}}), 0, 1)
    patch_P, nothing_UR = flat(initial()).numpy(), np.empty((users, 0), np.float32)
    return best_time(lambda: task.train(task.client_ids_U, patch_P, nothing_UR, 1, 0), rounds)


def measure(users: int, rounds: int, save: str = "") -> Iterator[Row]:
    task = {"users": users, "rounds": rounds}
    vmap_wall, vmap_cpu, vmap_first_P = plain_vmap(users, rounds)
    yield {"step": "pfl-task-vmap", **task, **rates(users, float(vmap_wall.min()), float(vmap_cpu.min()))}
    yield {"step": "pfl-task-arithmetic", **task, **rates(users, *arithmetic(users, rounds))}
    wall, cpu, _ = ours(users, rounds, SIGMA)
    _, _, patch_P = ours(users, 1, sigma=0.0)
    first_P = patch_P - flat(initial()).numpy()
    if save:
        torch.save(torch.from_numpy(-first_P), save)
    differs = float(np.linalg.norm(first_P - vmap_first_P) / np.linalg.norm(vmap_first_P))
    row = {"step": "pfl-task", **task, **rates(users, float(wall.min()), float(cpu.min()))}
    yield {**row, "relative_difference_before_noise": differs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=1_000)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--save", default="", help="file for the mean update of round 1 before noise")
    given = parser.parse_args()
    for row in measure(given.users, given.rounds, given.save):
        report(row)


if __name__ == "__main__":
    main()
