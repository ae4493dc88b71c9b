"""Several processes train one model: torch.distributed, one share of every batch each, gradients summed.

The gradient of a batch's mean loss over B pairs is the sum over processes of (B_r / B) times the gradient of their own
means. DistributedDataParallel averages over W processes, so each scales its loss by W · B_r / B.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from fedquilt.errors import ConfigError
from models.graph_model import GraphModel


@dataclass(frozen=True)
class World:
    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """The one process that judges, prints and writes."""
        return self.rank == 0

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            distributed.barrier()


@contextmanager
def world(device: str = "cpu") -> Iterator[World]:
    """The processes that ``torchrun`` started (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT), joined; else this one.

    They compute on the CPU (gloo). Several GPUs are refused: that path was never run. One process may use one GPU.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World()
        return
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise ConfigError(f"WORLD_SIZE is {size}, but {', '.join(missing)} is not set; start with torchrun")
    if device != "cpu":
        raise ConfigError(f"graph_model.device = {device!r} with {size} processes: several processes train on the cpu")
    distributed.init_process_group("gloo")
    try:
        yield World(distributed.get_rank(), distributed.get_world_size())
    finally:
        distributed.destroy_process_group()


def shared_model(model: nn.Module, of: World) -> nn.Module:
    """The model whose backward pass averages gradients over all processes."""
    return DistributedDataParallel(model) if of.size > 1 else model


def unshared(model: nn.Module) -> GraphModel:
    """The model inside ``shared_model``."""
    inner = model.module if isinstance(model, DistributedDataParallel) else model
    assert isinstance(inner, GraphModel)
    return inner


def share_of_loss(own_pairs: int, all_pairs: int, of: World) -> float:
    return own_pairs * of.size / all_pairs


def mean_over(value: float, of: World) -> float:
    """Of one number a process."""
    if of.size == 1:
        return value
    total = torch.tensor(value, dtype=torch.float64)
    distributed.all_reduce(total)
    return float(total) / of.size


def from_leader(value: float, of: World) -> float:
    """The leader's number, in every process."""
    if of.size == 1:
        return value
    tensor: Tensor = torch.tensor(value, dtype=torch.float64)
    distributed.broadcast(tensor, src=0)
    return float(tensor)
