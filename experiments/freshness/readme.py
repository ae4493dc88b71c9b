"""The README's tables, made from ``results.json``."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from experiments.results import Row, markdown_table, read_results, replace_block

COLUMNS = (
    "stale cloud",
    "stale cloud + local subgraph",
    "local fine-tuning only",
    "FedAvg of the whole kernel",
    "fedquilt, federated patch",
    "fedquilt, then personal patch",
    "oracle",
)
GROUPS = {"all": "all", "tail": "least active third", "head": "most active third", "new": "new to the cloud"}


def update(readme: Path, results: Path) -> None:
    held = read_results(results)
    for dataset in ("ml-100k", "bazaar"):
        rows = [row for row in held["rows"] if row["dataset"] == dataset]
        if rows:
            replace_block(readme, dataset, table(rows))
    figures = markdown_table(
        ("figure", "measured"), [(name, f"{value:.4f}") for name, value in held["headline"].items()]
    )
    replace_block(readme, "headline", figures)


def table(rows: list[Row]) -> str:
    header = ["column", "HR@10", *(f"NDCG@10, {label}" for label in GROUPS.values()), "bytes up, a user a round"]
    lines = []
    for column in COLUMNS:
        own = [row for row in rows if row["column"] == column]
        if own:
            cells = [spread(own, "all", "HR@10"), *(spread(own, group, "NDCG@10") for group in GROUPS)]
            lines.append([column, *cells, f"{np.mean([r['bytes_up_per_user_per_round'] for r in own]):,.0f}"])
    users = {group: rows[0]["scores"][group]["users"] for group in GROUPS}
    counts = ", ".join(f"{users[group]} {label}" for group, label in GROUPS.items())
    seeds = len({row["seed"] for row in rows})
    told = f"{markdown_table(header, lines)}\n\nTest users: {counts}. Seeds: {seeds}; ± is their standard deviation."
    if not all("ndcg_by_user" in row for row in rows):  # measured before rows held it
        return told
    low, middle, high = ahead_of_oracle(rows)
    return (
        f"{told}\n\nfedquilt with personal patch minus oracle, NDCG@10, users paired, seeds averaged: {middle:+.4f} "
        f"(95 % interval {low:+.4f} to {high:+.4f})."
    )


def spread(rows: list[Row], group: str, metric: str) -> str:
    values = [row["scores"][group][metric] for row in rows]
    return f"{np.mean(values):.4f} ± {np.std(values, ddof=1):.4f}" if len(values) > 1 else f"{values[0]:.4f}"


def ahead_of_oracle(rows: list[Row], resamples: int = 10_000) -> tuple[float, float, float]:
    """2.5 %, mean and 97.5 % of the paired difference, by bootstrap over users; seeds averaged first."""
    ours_U, oracle_U = (
        np.mean([row["ndcg_by_user"] for row in rows if row["column"] == column], axis=0)
        for column in ("fedquilt, then personal patch", "oracle")
    )
    difference_U = ours_U - oracle_U
    drawn = np.random.default_rng(0).integers(len(difference_U), size=(resamples, len(difference_U)))
    low, high = np.quantile(difference_U[drawn].mean(axis=1), (0.025, 0.975))
    return float(low), float(difference_U.mean()), float(high)
