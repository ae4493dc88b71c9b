"""What the throughput benchmarks share: the task, clocks, and child processes that measure one thing each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch

from client.recommend import RecommendTask
from experiments.benchmarks.graphs import status_mb
from experiments.results import ROOT
from fedquilt.config import Config, parse
from fedquilt.graphs.datasets import load_split
from fedquilt.seeds import generator_for
from models.kernel import KernelWeights
from models.patches import initial_patch, patch_spec
from server.cloud import Base, train_cloud

NUM_ITEMS, CLIPPING_NORM = 3_700, 0.5
Row = dict[str, Any]


def config_for(num_users: int, parts: Sequence[str] = ("bottleneck",), **federation: Any) -> Config:
    """The client step that the aims are about, whatever the defaults are: N = 48, F = 32, bottleneck 8, S = Q = 16,
    one moment each, 4 negatives, one second-order inner step on the whole patch.
    """
    return parse(
        {
            "name": "throughput",
            "data": {"dataset": "bazaar", "num_users": num_users, "num_items": NUM_ITEMS, "mean_clicks": 50},
            "graph": {"window": 5, "top_neighbours": 20, "num_nodes": 48, "num_clicked": 32},
            "cloud": {"dim": 32, "epochs": 0},
            "patch": {"parts": list(parts), "bottleneck": 8},
            "meta": {
                "num_contexts": 1,
                "num_support": 16,
                "num_query": 16,
                "num_negatives": 4,
                "inner_steps": 1,
                "inner_learning_rate": 0.1,
                "inner_parts": list(parts),
                "second_order": True,
                "support_weight": 0.0,
                "carry": 0.0,
            },
            "federation": {
                "clipping_norm": CLIPPING_NORM,
                "upload_entries": 0,
                "evaluate_every": 0,
                "checkpoint_every": 10,
                **federation,
            },
        }
    )


@cache
def base_for(num_users: int) -> Base:
    """Neighbours from the log, item vectors from features; the convolutions, which training would fill, are drawn."""
    config = config_for(num_users)
    split = load_split(config.data, config.split)
    base = train_cloud(config, split).base
    drawn = generator_for(0, use="benchmark").normal(scale=0.2, size=base["convolution"].shape)
    return {**base, "convolution": drawn.astype(np.float32)}


def task_for(config: Config) -> tuple[RecommendTask, np.ndarray]:
    """A node that hosts everyone, and a patch [P] that is not zero anywhere."""
    split = load_split(config.data, config.split)
    task = RecommendTask(config, split, np.arange(split.train.num_users))
    base = base_for(config.data.num_users)
    task.install(base)
    spec = patch_spec(KernelWeights.of(base), config.patch)
    noise_P = generator_for(0, use="patch").normal(scale=0.05, size=spec.num_parameters)
    return task, initial_patch(spec, torch.Generator().manual_seed(0)).numpy() + noise_P.astype(np.float32)


def best_time(call: Callable[[], Any], repeats: int) -> tuple[float, float]:
    """(wall, processor) seconds, the best of each; the first call is not counted."""
    call()
    times = []
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        call()
        times.append((time.perf_counter() - wall, time.process_time() - cpu))
    return min(wall for wall, _ in times), min(cpu for _, cpu in times)


def rates(users: int, wall_s: float, cpu_s: float) -> Row:
    return {"users_per_s": round(users / wall_s, 1), "users_per_cpu_s": round(users / cpu_s, 1)}


def peak_gb() -> float:
    """Of this process so far, in GiB."""
    return round(status_mb("VmHWM") / 1024, 3)


def in_child(module: str, arguments: Mapping[str, Any], threads: int) -> list[Row]:
    """``python -m experiments.benchmarks.<module> --name value ...`` in a process of its own -> the rows it prints."""
    given = [part for name, value in arguments.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "PYTHONPATH": str(ROOT),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    command = [sys.executable, "-m", f"experiments.benchmarks.{module}", *given]
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"step"')]
    return [{**row, "threads": threads, "load": round(os.getloadavg()[0], 1)} for row in found]


def report(row: Row) -> None:
    """To the parent; every row begins with its ``step``."""
    print(json.dumps(row), flush=True)
