"""The README's tables, made from ``results.json`` and ``tuning.json``; nobody types a number."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from experiments import results
from experiments.peers.table import PEERS
from experiments.results import Row

NUM_USERS = 943


def update(readme: Path, path: Path, tuning: Path) -> None:
    """Errors: RunError where there are no results yet."""
    measured = results.read_results(path)
    rows: list[Row] = measured["rows"]
    tuned: list[Row] = results.read_results(tuning)["rows"] if tuning.exists() else []
    results.replace_block(readme, "scores", scores_table(rows))
    results.replace_block(readme, "references", reference_table(rows))
    results.replace_block(readme, "chosen", chosen_table(rows, tuned))
    results.replace_block(readme, "machine", results.origin(measured))


def scores_table(rows: list[Row]) -> str:
    header = ["model", "loo99-strict HR@10", "NDCG@10", "loo-full HR@10", "NDCG@10", "seeds", "processor seconds a fit"]
    lines = []
    for model, own in _by_model(rows).items():
        cells = [
            mean_and_std([row["test"][metric] for row in own if row["protocol"] == protocol])
            for protocol in ("loo99-strict", "loo-full")
            for metric in ("HR@10", "NDCG@10")
        ]
        seconds = np.mean([row["seconds"] for row in own])
        seeds = "–" if deterministic(model) else len({row["seed"] for row in own})
        lines.append([_title(model), *cells, seeds, f"{seconds:.0f}" if seconds >= 1 else "< 1"])
    return results.markdown_table(header, lines)


def reference_table(rows: list[Row]) -> str:
    header = ["model", "reference", "measured", "difference in HR@10", "in standard errors", "within one"]
    lines = []
    for model, own in _by_model(rows).items():
        tests = [row["test"] for row in own if row["protocol"] == "loo99-strict"]
        reference = PEERS[model].reference if model in PEERS else None
        if reference is None or not tests:
            continue
        hit, gain = (float(np.mean([test[metric] for test in tests])) for metric in ("HR@10", "NDCG@10"))
        errors = (hit - reference[0]) / standard_error(reference[0])
        shown = [f"{reference[0]:.3f} / {reference[1]:.3f}", f"{hit:.3f} / {gain:.3f}", f"{hit - reference[0]:+.3f}"]
        lines.append([_title(model), *shown, f"{errors:+.1f}", "yes" if abs(errors) <= 1 else "**no**"])
    return results.markdown_table(header, lines)


def chosen_table(rows: list[Row], tuned: list[Row]) -> str:
    header = ["model", "protocol", "chosen by validation", "trials", "epochs, by validation"]
    lines = []
    for model, own in _by_model(rows).items():
        for protocol in dict.fromkeys(row["protocol"] for row in own):
            fits = [row for row in own if row["protocol"] == protocol]
            trials = sum((row["model"], row["protocol"]) == (model, protocol) for row in tuned) or 1
            epochs = ", ".join(str(row["epoch"]) for row in fits if row["epoch"]) or "–"
            lines.append([_title(model), protocol, _hyper(fits[-1]["hyper"]), trials, epochs])
    return results.markdown_table(header, lines)


def mean_and_std(values: list[float]) -> str:
    """Mean over seeds and the sample standard deviation (none of one value)."""
    if not values:
        return "–"
    spread = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
    return f"{np.mean(values):.3f}{spread}"


def standard_error(hit_rate: float, users: int = NUM_USERS) -> float:
    """Of a hit rate over ``users`` users: sqrt(p (1 - p) / users)."""
    return math.sqrt(hit_rate * (1 - hit_rate) / users)


def deterministic(model: str) -> bool:
    return model in PEERS and PEERS[model].deterministic


def _by_model(rows: list[Row]) -> dict[str, list[Row]]:
    """Models in the order of the table of peers; others after them."""
    order = [*PEERS, *dict.fromkeys(row["model"] for row in rows if row["model"] not in PEERS)]
    grouped = {model: [row for row in rows if row["model"] == model] for model in order}
    return {model: own for model, own in grouped.items() if own}


def _title(model: str) -> str:
    return PEERS[model].title if model in PEERS else model


def _hyper(hyper: dict) -> str:
    return ", ".join(f"{name} {value}" for name, value in hyper.items()) or "defaults"
