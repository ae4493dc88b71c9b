"""The consumer: one step a batch, one judgement and one checkpoint an epoch. It samples nothing, it only computes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fedquilt.config import GraphModelConfig
from fedquilt.graphs.importance import Neighbourhoods
from fedquilt.graphs.log import InteractionLog
from fedquilt.graphs.splits import HeldOut
from fedquilt.seeds import key_for
from models.graph_model import GraphModel
from server.graph_training.batches import Batch, BatchMaker, Material, produced
from server.graph_training.checkpoint import Progress, optimizer_moments, restore_moments
from server.graph_training.distributed import World, from_leader, mean_over, share_of_loss, shared_model, unshared
from server.graph_training.judge import validation_ndcg
from server.graph_training.objective import batch_loss
from server.graph_training.schedule import hard_negatives_at, learning_rate_at
from server.graph_training.user_batches import UserBatch, UserBatchMaker
from server.graph_training.vectors import all_vectors, build_model, map_of

AnyBatch = Batch | UserBatch


@dataclass(frozen=True, eq=False)
class Task:
    """``log`` and ``valid``: what the score of an epoch is made of, with vectors pooled by ``neighbours``.

    ``belongs_to``: hash of all that training depends on.
    """

    material: Material
    log: InteractionLog
    valid: HeldOut
    neighbours: Neighbourhoods
    seed: int
    belongs_to: str


@dataclass(frozen=True)
class Hooks:
    """What is told to whom: after every step (done, of how many, note), and after every epoch, to be stored."""

    on_step: Callable[[int, int, str], None] = lambda done, total, note: None
    on_epoch: Callable[[Progress], None] = lambda progress: None


@dataclass
class Meter:
    """Seconds that the consumer waited for batches and computed, and the loss, summed over one epoch."""

    waited_s: float = 0.0
    computed_s: float = 0.0
    loss: float = 0.0
    since: float = field(default_factory=time.perf_counter)

    def waiting(self, batches: Iterator[AnyBatch]) -> Iterator[AnyBatch]:
        while True:
            self.since = time.perf_counter()
            batch = next(batches, None)
            if batch is None:
                return
            now = time.perf_counter()
            self.waited_s, self.since = self.waited_s + now - self.since, now
            yield batch

    def stepped(self, loss: float) -> None:
        self.computed_s += time.perf_counter() - self.since
        self.loss += loss


def fresh(config: GraphModelConfig, task: Task) -> tuple[GraphModel, Progress]:
    """The model before its first step."""
    generator = torch.Generator().manual_seed(key_for(task.seed, use="graph-model") >> 1)
    model = build_model(config, task.material.values_IF.shape[1], generator)
    weights = _copy(model)
    return model, Progress(0, task.belongs_to, weights, weights, {})


def is_finished(config: GraphModelConfig, progress: Progress) -> bool:
    """All epochs done, or ``patience`` epochs without a better score."""
    return progress.epoch >= config.epochs or progress.epoch - progress.best_epoch >= config.patience


def train(
    config: GraphModelConfig,
    task: Task,
    start: Progress | None = None,
    hooks: Hooks | None = None,
    world: World | None = None,
) -> Progress:
    """Train from ``start`` (None: from the beginning) to the end; the bits depend on (config, task) alone.

    One torch thread, for the same bits on any machine. The best epoch is that of the best validation NDCG@10; without
    validation clicks, the last.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _train(config, task, start, hooks or Hooks(), world or World())
    finally:
        torch.set_num_threads(threads)


def _train(config: GraphModelConfig, task: Task, start: Progress | None, hooks: Hooks, world: World) -> Progress:
    model, progress = fresh(config, task)
    model.to(config.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    if start is not None:
        progress = start
        model.load_state_dict(dict(start.weights))
        restore_moments(optimizer, start.moments)
    if is_finished(config, progress):
        return progress
    maker = batch_maker(config, task.seed, task.material, world)
    trained = shared_model(model, world)
    keys = [(e, b) for e in range(progress.epoch + 1, config.epochs + 1) for b in range(maker.batches)]
    meter = Meter()
    for batch in meter.waiting(produced(config, maker, keys)):
        done = (batch.epoch - 1) * maker.batches + batch.number
        _set_rate(optimizer, learning_rate_at(config, done, maker.batches))
        meter.stepped(take_step(config, task.seed, trained, optimizer, batch.to(config.device), world))
        hooks.on_step(done + 1, config.epochs * maker.batches, f"epoch {batch.epoch}")
        if batch.number == maker.batches - 1:
            record = _record(config, task, model, batch.epoch, meter, maker.batches, world)
            progress = _after_epoch(progress, model, optimizer, record)
            hooks.on_epoch(progress)
            meter.waited_s = meter.computed_s = meter.loss = 0.0  # not judging and storing
            if is_finished(config, progress):
                hooks.on_step(config.epochs * maker.batches, config.epochs * maker.batches, f"epoch {batch.epoch}")
                break
    return progress


def batch_maker(
    config: GraphModelConfig, seed: int, material: Material, world: World | None = None
) -> BatchMaker | UserBatchMaker:
    """Of pairs, or of users (``graph_model.pairs``)."""
    world = world or World()
    kind = UserBatchMaker if config.pairs == "users" else BatchMaker
    return kind(config, seed, material, world.rank, world.size)


def take_step(
    config: GraphModelConfig,
    seed: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: AnyBatch,
    world: World,
) -> float:
    """-> this process's scaled loss; the mean over processes is the batch's."""
    optimizer.zero_grad()
    shuffle = torch.Generator().manual_seed(key_for(seed, batch.epoch, batch.number, "graph-shuffle") >> 1)
    vectors_DF = model(batch.features_NF, batch.blocks, shuffle)
    loss = batch_loss(config, vectors_DF, batch, unshared(model).user_map)
    loss = loss * share_of_loss(batch.rows, batch.pairs, world)
    loss.backward()
    optimizer.step()
    return float(loss.detach())


def _record(
    config: GraphModelConfig, task: Task, model: GraphModel, epoch: int, meter: Meter, steps: int, world: World
) -> dict[str, Any]:
    record: dict[str, Any] = {
        "kind": "graph-model",
        "epoch": epoch,
        "loss": mean_over(meter.loss / steps, world),
        "learning_rate": learning_rate_at(config, epoch * steps - 1, steps),
        "hard_negatives": hard_negatives_at(config, epoch),
        "waited_s": round(meter.waited_s, 3),
        "computed_s": round(meter.computed_s, 3),
    }
    if len(task.valid):
        score = _score(config, task, model) if world.leads else 0.0
        record["valid_ndcg"] = from_leader(score, world)
    return record


def _score(config: GraphModelConfig, task: Task, model: GraphModel) -> float:
    vectors_IF = all_vectors(model, task.material.values_IF, task.neighbours)
    return validation_ndcg(vectors_IF, task.log, task.valid, config, map_of(model))


def _after_epoch(
    before: Progress, model: GraphModel, optimizer: torch.optim.Optimizer, record: dict[str, Any]
) -> Progress:
    weights, epoch = _copy(model), record["epoch"]
    score = record.get("valid_ndcg", float(epoch))
    better = score > before.best_score
    return Progress(
        epoch=epoch,
        belongs_to=before.belongs_to,
        weights=weights,
        best_weights=weights if better else before.best_weights,
        moments=optimizer_moments(optimizer),
        best_epoch=epoch if better else before.best_epoch,
        best_score=score if better else before.best_score,
        history=(*before.history, record),
    )


def _set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


def _copy(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
