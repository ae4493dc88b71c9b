"""What producer processes save: batches made while the model computes, against batches made in between.

    OMP_NUM_THREADS=1 python -m experiments.benchmarks.producers

PinSage with the default settings on a bazaar of 1,000 items, batches of 1,024 pairs with two hard negatives each, one
torch thread. Without a producer a step waits while its batch is made; with one it takes a finished batch. Both run in
turn, pair after pair, on the same batches, in one process, because other work shares the machine: ``time_saved`` is
1 - (wall with one producer) / (wall without), the median over pairs. ``made_cpu_s`` and ``computed_cpu_s`` are
processor time a batch, which other work moves less: the most that one producer can save is the smaller of them over
their sum, ``possible``. The first batches, which a producer is not ahead of, are not counted, and it goes on making
batches to the last one that is.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from itertools import islice
from pathlib import Path

import torch

from experiments.benchmarks import cloud_results
from experiments.results import Row, markdown_table, replace_block
from fedquilt.config import Config, parse
from fedquilt.graphs.datasets import load_split
from server.graph_training.batches import BatchMaker, produced
from server.graph_training.distributed import World
from server.graph_training.prepare import prepare
from server.graph_training.trainer import Meter, Task, fresh, take_step

README = Path(__file__).with_name("README.md")
EPOCH = 3  # two hard negatives a pair
WARM_UP = 4  # batches, as many as a producer may be ahead


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=2_000)
    parser.add_argument("--items", type=int, default=1_000)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--pairs", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    config = config_for(arguments.users, arguments.items)
    task = prepare(config, load_split(config.data, config.split)).task
    rows: list[Row] = []
    for pair in range(1, arguments.pairs + 1):
        rows += a_pair(config, task, pair, arguments.steps)
        cloud_results.write("producers", rows[-2:], headline)
    replace_block(README, "producers", table(rows))
    print(table(rows))


def config_for(users: int, items: int) -> Config:
    data = {"dataset": "bazaar", "num_users": users, "num_items": items}
    return parse({"data": data, "split": {"cloud_share": 1.0}, "graph_model": {"batch_size": 1024}})


def a_pair(config: Config, task: Task, pair: int, steps: int) -> list[Row]:
    """Without a producer and then with one; every other pair the other way round."""
    order = (0, 1) if pair % 2 else (1, 0)
    found = {producers: one(config, task, producers, steps) for producers in order}
    about = {"step": "train", "pair": pair, "items": config.data.num_items, "batch_size": 1024, "threads": 1}
    about |= {"time_saved": round(1 - found[1]["wall_s"] / found[0]["wall_s"], 3)}
    return [about | found[producers] | {"load": round(os.getloadavg()[0], 1)} for producers in (0, 1)]


def one(config: Config, task: Task, producers: int, steps: int) -> Row:
    """Seconds a batch over ``steps`` batches after the warm-up, the same ones at every call."""
    settings = config.graph_model.model_copy(update={"num_producers": producers})
    maker = BatchMaker(settings, task.seed, task.material)
    model, _ = fresh(settings, task)
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.learning_rate)
    keys = [(EPOCH, number % maker.batches) for number in range(WARM_UP + steps + settings.prefetch)]
    batches = produced(settings, maker, keys)
    for _ in range(WARM_UP):
        take_step(settings, task.seed, model, optimizer, next(batches), World())
    meter, made_s = Meter(), 0.0
    began, cpu = time.perf_counter(), time.process_time()
    for batch in meter.waiting(islice(batches, steps)):
        meter.stepped(take_step(settings, task.seed, model, optimizer, batch, World()))
        made_s += batch.made_cpu_s
    wall_s, cpu_s = time.perf_counter() - began, time.process_time() - cpu
    computed = cpu_s if producers else cpu_s - made_s
    sums = {"wall_s": wall_s, "waited_s": meter.waited_s, "computed_s": meter.computed_s}
    sums |= {"made_cpu_s": made_s, "computed_cpu_s": computed}
    possible = min(made_s, computed) / (made_s + computed)
    return (
        {"producers": producers} | {k: round(v / steps, 4) for k, v in sums.items()} | {"possible": round(possible, 3)}
    )


def headline(rows: list[Row]) -> dict[str, float]:
    saved = [row["time_saved"] for row in rows if row["producers"] == 1]
    return {"overlap_time_saved": statistics.median(saved)} if saved else {}


def table(rows: list[Row]) -> str:
    """Medians over pairs, in milliseconds a batch."""
    names = ("wall_s", "waited_s", "computed_s", "made_cpu_s", "computed_cpu_s")
    header = ("producers", "wall ms", "waiting", "computing", "making, processor", "computing, processor", "saved")
    lines = []
    for producers in (0, 1):
        of = [row for row in rows if row["producers"] == producers]
        cells = [f"{1000 * statistics.median(row[name] for row in of):.0f}" for name in names]
        saved = f"{statistics.median(row['time_saved'] for row in of):.0%}" if producers else "–"
        lines.append([str(producers), *cells, saved])
    possible = statistics.median(row["possible"] for row in rows)
    loads = [row["load"] for row in rows]
    note = f"{len(rows) // 2} pairs; the most that one producer could save is {possible:.0%}; "
    return f"{markdown_table(header, lines)}\n\n{note}load {min(loads)} to {max(loads)} on {os.cpu_count()} cores."


if __name__ == "__main__":
    main()
