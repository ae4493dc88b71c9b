"""The README's tables, made from ``results.json`` and ``tuning.json``; nobody types a number."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from experiments import results
from experiments.pinsage.data import PROTOCOLS
from experiments.pinsage.headline import METRICS, at_or_above, gain, mean, values
from experiments.pinsage.judge import QUESTIONS, selection
from experiments.pinsage.table import ABLATIONS, MODELS
from experiments.results import Row

_SHORT = {"user": "user → item", "item": "item → item"}


def update(readme: Path, path: Path, tuning: Path) -> None:
    """Errors: RunError where there are no results yet."""
    measured = results.read_results(path)
    rows: list[Row] = measured["rows"]
    tuned: list[Row] = results.read_results(tuning)["rows"] if tuning.exists() else []
    results.replace_block(readme, "scores", scores_table(rows))
    results.replace_block(readme, "parts", parts_table(rows))
    results.replace_block(readme, "inductive", inductive_table(rows))
    results.replace_block(readme, "headline", headline_lines(measured["headline"], rows))
    results.replace_block(readme, "chosen", chosen_table(rows, tuned))
    results.replace_block(readme, "tried", tried_table(json.loads(path.with_name("tried.json").read_text())["rows"]))
    results.replace_block(readme, "machine", results.origin(measured))


def scores_table(rows: list[Row]) -> str:
    """NDCG@10 of both questions on every log, mean over seeds ± standard deviation."""
    models = [name for name, model in MODELS.items() if model.asks is None]
    return _table(rows, models, METRICS)


def inductive_table(rows: list[Row]) -> str:
    models = [name for name, model in MODELS.items() if model.asks is not None]
    return _table(rows, models, ["user NDCG@10", "user Recall@50"])


def _table(rows: list[Row], models: list[str], metrics: list[str]) -> str:
    header = ["model", *(f"{dataset}, {_named(metric)}" for dataset in PROTOCOLS for metric in metrics), "seeds"]
    lines = []
    for name in models:
        cells = [mean_and_std(values(rows, dataset, name, metric)) for dataset in PROTOCOLS for metric in metrics]
        if any(cell != "–" for cell in cells):
            lines.append([MODELS[name].title, *cells, _seeds(rows, name)])
    return results.markdown_table(header, lines)


def parts_table(rows: list[Row]) -> str:
    """What a part adds: NDCG@10 of the whole over NDCG@10 without it, less 1; and how many seeds agree."""
    header = [
        "taken away",
        *(f"{dataset}, {_SHORT[question]}" for dataset in PROTOCOLS for question in QUESTIONS),
        "mean",
    ]
    lines = []
    for name in ABLATIONS:
        gains = [gain(rows, dataset, metric, name) for dataset in PROTOCOLS for metric in METRICS]
        known = [value for value in gains if value is not None]
        if known:
            cells = [
                _percent(value, _agreeing(rows, dataset, metric, name))
                for value, (dataset, metric) in zip(
                    gains, ((dataset, metric) for dataset in PROTOCOLS for metric in METRICS), strict=True
                )
            ]
            lines.append([MODELS[name].title, *cells, f"{100 * np.mean(known):+.1f} %"])
    return results.markdown_table(header, lines)


def _agreeing(rows: list[Row], dataset: str, metric: str, name: str) -> str:
    pairs = list(zip(values(rows, dataset, "pinsage", metric), values(rows, dataset, name, metric), strict=False))
    return f"{sum(whole > without for whole, without in pairs)} of {len(pairs)}"


def _percent(value: float | None, agreeing: str) -> str:
    return "–" if value is None else f"{100 * value:+.1f} % ({agreeing})"


def headline_lines(figures: dict[str, float], rows: list[Row]) -> str:
    lines = [f"- `{name}`: {value:g}" for name, value in figures.items()]
    for dataset in PROTOCOLS:
        verdict = at_or_above(rows, dataset)
        if verdict is not None:
            ours, theirs = ([mean(rows, dataset, name, metric) for metric in METRICS] for name in _COMPARED)
            shown = "; ".join(f"{a:.4f} against {b:.4f}" for a, b in zip(ours, theirs, strict=True))
            lines.append(f"- {dataset}: PinSage against LightGCN {shown} ({', '.join(_SHORT.values())})")
    return "\n".join(lines)


_COMPARED = ("pinsage", "lightgcn")


def chosen_table(rows: list[Row], tuned: list[Row]) -> str:
    """Every trial, and the validation NDCG@10 that it reached; the chosen one first."""
    header = [
        "model",
        "log",
        "trial",
        *(f"validation {_SHORT[question]}" for question in QUESTIONS),
        "epoch",
        "seconds",
    ]
    order = {name: place for place, name in enumerate(MODELS)}
    ranked = sorted(tuned, key=lambda row: (order[row["model"]], row["dataset"], -selection(row["valid"])))
    lines = [
        [
            MODELS[row["model"]].title,
            row["dataset"],
            ", ".join(f"{name} {value}" for name, value in row["hyper"].items()) or "defaults",
            *(f"{row['valid'][metric]:.4f}" for metric in METRICS),
            row["epoch"],
            f"{row['seconds']:.0f}",
        ]
        for row in ranked
    ]
    return results.markdown_table(header, lines)


def tried_table(rows: list[Row]) -> str:
    header = ["tried", "log", *(f"validation {_SHORT[question]}" for question in QUESTIONS)]
    return results.markdown_table(
        header, [[row["what"], row["dataset"], *(f"{row['valid'][metric]:.4f}" for metric in METRICS)] for row in rows]
    )


def mean_and_std(found: list[float]) -> str:
    """Mean over seeds and the sample standard deviation (none of one value)."""
    if not found:
        return "–"
    spread = f" ± {np.std(found, ddof=1):.4f}" if len(found) > 1 else ""
    return f"{np.mean(found):.4f}{spread}"


def _seeds(rows: list[Row], name: str) -> str:
    if MODELS[name].deterministic:
        return "–"
    counts = [len({row["seed"] for row in rows if (row["model"], row["dataset"]) == (name, d)}) for d in PROTOCOLS]
    return " / ".join(str(count) for count in counts)


def _named(metric: str) -> str:
    question, _, name = metric.partition(" ")
    return f"{_SHORT[question]} {name}"
