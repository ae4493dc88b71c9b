"""Mini-batches of users: each of a user's clicks is predicted from the others, and from single ones of these.

A row is a run of a user's clicks, at most ``user_clicks`` long, that begins anywhere. Queries are the user, without the
click that is predicted, and ``single_queries`` of the clicks, drawn anew, each alone. A batch of pairs has one positive
a query and computes as many vectors; here a query has many.

To hide the edges between all clicks of a row would leave nothing of the graph where logs are dense. Hidden is a
neighbour where half or more of the users who clicked both items, anywhere in the log, are in the batch.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from fedquilt.config import GraphModelConfig
from fedquilt.errors import ConfigError, DataError
from fedquilt.graphs.blocks import Sampler
from fedquilt.graphs.edges import Clickers, without_users
from fedquilt.graphs.log import InteractionLog
from fedquilt.metrics import ragged
from models.graph_model import TorchBlock
from server.graph_training.batches import Key, Material, moved, placed, sampler
from server.graph_training.judge import recency_weights
from server.graph_training.negatives import batch_generator, draw_hard, draw_shared
from server.graph_training.pairs import batch_of, epoch_order, num_batches
from server.graph_training.schedule import hard_negatives_at


@dataclass(frozen=True, eq=False)
class UserBatch:
    """Places among the D targets of the last block; B rows, of ``pairs`` in the whole batch.

    ``clicked_BA``, latest first, with weights that sum to 1 a row. ``asked_BQ``: columns of ``clicked_BA`` (not places)
    that are the single queries, ``hard_BQH`` their hard negatives. ``..._counts``: False for padding, and for
    negatives that the user clicked.
    """

    epoch: int
    number: int
    pairs: int
    features_NF: Tensor
    blocks: tuple[TorchBlock, ...]
    clicked_BA: Tensor
    clicked_counts_BA: Tensor
    weights_BA: Tensor
    asked_BQ: Tensor
    shared_M: Tensor
    shared_counts_BM: Tensor
    hard_BQH: Tensor
    hard_counts_BQH: Tensor
    made_cpu_s: float = 0.0

    @property
    def rows(self) -> int:
        return len(self.clicked_BA)

    def to(self, device: str) -> UserBatch:
        return moved(self, device)


def rows_of(log: InteractionLog) -> np.ndarray:
    """Users with two clicks or more. Errors: DataError where there is none."""
    users = np.flatnonzero(np.diff(log.offsets) >= 2)
    if not len(users):
        raise DataError(f"log {log.name}: no user has two clicks, so there is nothing to predict from another click")
    return users


def draw_runs(log: InteractionLog, users_B: np.ndarray, longest: int, generator: np.random.Generator) -> np.ndarray:
    """int64 [B, A]: one run a user, latest click first, -1 padded; of an item clicked twice, the latest click."""
    first_B, number_B = log.offsets[users_B], np.diff(log.offsets)[users_B]
    length_B = np.minimum(number_B, longest)
    last_B = first_B + length_B - 1 + (generator.random(len(users_B)) * (number_B - length_B + 1)).astype(np.int64)
    age_A = np.arange(length_B.max())
    real_BA = age_A < length_B[:, None]
    items_BA = np.where(real_BA, log.items_C[np.where(real_BA, last_B[:, None] - age_A, 0)], -1).astype(np.int64)
    later_AA = np.tri(len(age_A), k=-1, dtype=bool)
    again_BA = ((items_BA[:, :, None] == items_BA[:, None, :]) & later_AA).any(2)
    return np.where(again_BA, -1, items_BA)


def draw_columns(clicked_BA: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
    """int64 [B, Q]: columns of different clicks of each row; all columns where there are not more than ``count``.

    A row with fewer clicks gets columns of padding too.
    """
    keys_BA = np.where(clicked_BA >= 0, generator.random(clicked_BA.shape), 2.0)
    return np.argsort(keys_BA, axis=1)[:, :count]


class UserBatchMaker(Dataset[UserBatch]):
    """``maker[epoch, number]``, as ``BatchMaker``; ``batch_size`` and ``pairs_per_epoch`` count users."""

    def __init__(self, config: GraphModelConfig, seed: int, material: Material, rank: int = 0, world: int = 1):
        if material.log is None:
            raise ConfigError('graph_model.pairs = "users": the material has no log; prepare it with that setting')
        self.config, self.seed, self.material, self.rank, self.world = config, seed, material, rank, world
        self.log, self.users, self.clickers = material.log, rows_of(material.log), Clickers.of(material.log)
        self.batches = num_batches(len(self.users), config.pairs_per_epoch, config.batch_size)
        self._order: tuple[int, np.ndarray] = (0, np.zeros(0, np.int64))
        smallest = min(len(self.users), config.pairs_per_epoch or len(self.users)) // self.batches
        if smallest < world:
            raise ConfigError(f"batches of {smallest} users for {world} processes; raise graph_model.batch_size")

    def __getitem__(self, key: Key) -> UserBatch:
        began = time.process_time()
        (epoch, number), config, material = key, self.config, self.material
        generator = batch_generator(self.seed, epoch, number)
        users_B = self.users[batch_of(self._order_of(epoch), number, self.batches)]
        clicked_BA = draw_runs(self.log, users_B, config.user_clicks, generator)
        shared_M = draw_shared(material.cumulative_I, config.shared_negatives, generator)
        asked_BQ = draw_columns(clicked_BA, config.single_queries, generator)
        queries_BQ = np.take_along_axis(clicked_BA, asked_BQ, axis=1)
        hard_BQH = draw_hard(material.pool_IR, queries_BQ.ravel(), hard_negatives_at(config, epoch), generator)
        hard_BQH = hard_BQH.reshape(*asked_BQ.shape, -1)
        sample = without_users(sampler(config, material.graph, generator), self.clickers, users_B)
        mine = slice(self.rank, None, self.world)
        batch = self._assembled(users_B[mine], (clicked_BA[mine], shared_M, hard_BQH[mine]), asked_BQ[mine], sample)
        return replace(batch, epoch=epoch, number=number, pairs=len(users_B), made_cpu_s=time.process_time() - began)

    def _assembled(
        self, users_B: np.ndarray, ids: tuple[np.ndarray, ...], asked_BQ: np.ndarray, sample: Sampler
    ) -> UserBatch:
        targets_D, (clicked_BA, shared_M, hard_BQH), features_NF, blocks = placed(
            self.config, self.material, ids, sample
        )
        seen_BD = self._seen(users_B, targets_D)
        counts_BA = ids[0] >= 0
        weights_BA = counts_BA * recency_weights(self.config)[: counts_BA.shape[1]]
        arrays = {
            "features_NF": features_NF,
            "clicked_BA": clicked_BA,
            "clicked_counts_BA": counts_BA,
            "weights_BA": (weights_BA / weights_BA.sum(1, keepdims=True)).astype(np.float32),
            "asked_BQ": asked_BQ,
            "shared_M": shared_M,
            "shared_counts_BM": ~seen_BD[:, shared_M],
            "hard_BQH": hard_BQH,
            "hard_counts_BQH": (ids[2] >= 0) & ~seen_BD[np.arange(len(users_B))[:, None, None], hard_BQH],
        }
        tensors: dict[str, Any] = {name: torch.from_numpy(value) for name, value in arrays.items()}
        return UserBatch(0, 0, 0, blocks=blocks, **tensors)

    def _seen(self, users_B: np.ndarray, targets_D: np.ndarray) -> np.ndarray:
        """bool [B, D]: what each user clicked anywhere in the log."""
        rows, items = ragged(self.log.offsets, self.log.items_C, users_B)
        place = np.minimum(np.searchsorted(targets_D, items), len(targets_D) - 1)
        here = targets_D[place] == items
        seen_BD = np.zeros((len(users_B), len(targets_D)), bool)
        seen_BD[rows[here], place[here]] = True
        return seen_BD

    def _order_of(self, epoch: int) -> np.ndarray:
        if self._order[0] != epoch:
            count = len(self.users)
            self._order = (epoch, epoch_order(count, self.config.pairs_per_epoch, self.seed, epoch))
        return self._order[1]
