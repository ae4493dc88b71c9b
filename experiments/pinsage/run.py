"""PinSage's study: ``python -m experiments.pinsage.run``. Writes ``tuning.json``, ``results.json`` and the README.

Hyper-parameters are chosen first, with seed 0, on validation clicks only: ``tuning.json`` holds every trial and no test
score. The best trial's fit is seed 0's row; what the files already hold is not fitted again.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from experiments import results
from experiments.pinsage import judge, readme
from experiments.pinsage.baselines import on_validation
from experiments.pinsage.data import DATA, PROTOCOLS, Task, load_task
from experiments.pinsage.headline import headline
from experiments.pinsage.table import MODELS, Hyper, Model
from experiments.results import Row, names_among

HERE = Path(__file__).parent
KEY = ("dataset", "model", "seed")
TRIAL_KEY = ("dataset", "model", "hyper")
Fit = tuple[judge.Answers, Row]


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    tuning = options.json.with_name("tuning.json")
    if not options.readme:
        torch.set_num_threads(1)
        for dataset in options.datasets:
            task = load_task(dataset, options.data)
            judge.require_honest(task)
            for name in options.models:
                study(name, task, options.seeds, options.json, tuning)
    readme.update(HERE / "README.md", options.json, tuning)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m experiments.pinsage.run", description=__doc__)
    parser.add_argument("--models", type=names_among(MODELS), default=list(MODELS), help=", ".join(MODELS))
    parser.add_argument("--datasets", type=names_among(PROTOCOLS), default=list(PROTOCOLS), help=", ".join(PROTOCOLS))
    parser.add_argument("--seeds", type=lambda text: [int(seed) for seed in text.split(",")], default=[0, 1, 2])
    parser.add_argument("--data", type=Path, default=DATA, help="the folder that holds the three logs")
    parser.add_argument("--json", type=Path, default=HERE / "results.json", help="tuning.json lies beside it")
    parser.add_argument("--readme", action="store_true", help="only make the README's tables from results.json")
    return parser.parse_args(arguments)


def study(name: str, task: Task, seeds: Sequence[int], path: Path, tuning: Path) -> None:
    """Tune one model on one log, then fit it with every seed; each row is on disk before the next fit begins."""
    model = MODELS[name]
    hyper, tried = choose(name, model, task, tuning)
    for seed in seeds[:1] if model.deterministic else seeds:
        if any(is_row(row, name, task, seed, hyper) for row in rows_of(path)):
            continue
        answers, row = tried if tried and seed == 0 else fitted(model, task, seed, hyper)
        row = {"dataset": task.name, "model": name, "seed": seed, **about(task), **row}
        row["test"] = judge.judged(answers, model.asks(task) if model.asks else task, "test")
        results.write_results(path, [row], headline, key=KEY)
        say(name, task, f"seed {seed}  test {short(row['test'])}", row)


def choose(name: str, model: Model, task: Task, tuning: Path) -> tuple[Hyper, Fit | None]:
    """The best trial on validation clicks, and its fit where it was made just now."""
    if model.like:
        hyper, _ = choose(model.like, MODELS[model.like], task, tuning)
        return {**hyper, **(model.changes or {})}, None
    grid = list(model.grids[task.name])
    if len(grid) == 1:
        return grid[0], None
    best: Fit | None = None
    for hyper in grid:
        if any(is_trial(row, name, task, hyper) for row in rows_of(tuning)):
            continue
        fit = fitted(model, task, 0, hyper)
        row = {"dataset": task.name, "model": name, **about(task), **fit[1]}
        results.write_results(tuning, [row], lambda rows: {}, key=TRIAL_KEY)
        say(name, task, f"{hyper}  validation {short(row['valid'])}", row)
        if best is None or judge.selection(row["valid"]) > judge.selection(best[1]["valid"]):
            best = fit
    offered = [row for row in rows_of(tuning) if any(is_trial(row, name, task, hyper) for hyper in grid)]
    hyper = max(offered, key=lambda row: judge.selection(row["valid"]))["hyper"]
    return hyper, best if best and best[1]["hyper"] == hyper else None


def fitted(model: Model, task: Task, seed: int, hyper: Hyper) -> Fit:
    """One fit; ``seconds`` are processor seconds. Test clicks are not looked at."""
    started = time.process_time()
    answers, epoch = model.fit(task, seed, **hyper)
    seconds = round(time.process_time() - started, 1)
    row = {"hyper": dict(hyper), "epoch": epoch, "seconds": seconds, "choices": answers.choices}
    return answers, {**row, "valid": on_validation(answers, task)}


def about(task: Task) -> dict[str, Any]:
    return {"protocol": task.protocol, "split": task.hash}


def is_trial(row: Row, name: str, task: Task, hyper: Hyper) -> bool:
    return all(row[key] == value for key, value in {"dataset": task.name, "model": name, "hyper": hyper}.items()) and (
        row["split"] == task.hash
    )


def is_row(row: Row, name: str, task: Task, seed: int, hyper: Hyper) -> bool:
    return row["seed"] == seed and is_trial(row, name, task, hyper)


def rows_of(path: Path) -> list[Row]:
    return results.read_results(path)["rows"] if path.exists() else []


def short(values: dict[str, float]) -> str:
    return " / ".join(f"{values[f'{question} NDCG@10']:.4f}" for question in judge.QUESTIONS)


def say(name: str, task: Task, text: str, row: Row) -> None:
    print(f"{task.name:12} {name:14} {text}  epoch {row['epoch']}, {row['seconds']} s {row['choices']}", flush=True)


if __name__ == "__main__":
    main()
