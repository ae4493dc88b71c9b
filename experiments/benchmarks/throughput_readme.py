"""The README's tables, made from ``throughput.json`` and ``graphs.json``; nobody types a number."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from experiments import results
from experiments.results import Row

AIMS = {
    "users_per_s": ("client step, users/s on 2 cores, 4,096 at once, best of the pairs", 8_000, True),
    "speedup_vs_loop": ("the same, against a loop over users with autograd, median of the pairs", 10, True),
    "speedup_vs_ray": (
        "rounds of a federation, against one Flower supernode a user on Ray, median of the pairs",
        60,
        True,
    ),
    "pfl_task_users_per_s_core": ("pfl-research's task through the whole path, users/s on one core", 16_000, True),
    "peak_gb_100k_users": ("peak memory of a federation of 100,000 users, GiB", 4, False),
}


def update(readme: Path) -> None:
    """Errors: RunError where a results file or a place in the README is missing."""
    throughput = results.read_results(readme.with_name("throughput.json"))
    graphs = results.read_results(readme.with_name("graphs.json"))
    rows: list[Row] = throughput["rows"]
    results.replace_block(readme, "headline", headline_table(throughput["headline"]))
    results.replace_block(readme, "step", step_table(rows))
    results.replace_block(readme, "federation", federation_table(rows))
    results.replace_block(readme, "pfl", pfl_table(rows))
    results.replace_block(readme, "graphs", graphs_table(graphs))
    results.replace_block(readme, "machine", origin(throughput))


def headline_table(figures: dict[str, float]) -> str:
    lines = []
    for name, (title, aim, more_is_better) in AIMS.items():
        if name not in figures:
            continue
        reached = figures[name] >= aim if more_is_better else figures[name] <= aim
        sign = "≥" if more_is_better else "≤"
        lines.append([f"{title} (`{name}`)", number(figures[name]), f"{sign} {aim:,}", "yes" if reached else "**no**"])
    return results.markdown_table(["figure", "measured", "aim", "reached"], lines)


def step_table(rows: list[Row]) -> str:
    header = ["users at once", "patch", "threads", "pair", "users/s", "users per processor second", "load"]
    kinds = {"client-step": "", "loop": "loop, one by one: "}
    lines = [
        [
            f"{kinds[row['step']]}{row['users_at_once']:,}",
            row["parts"],
            row["threads"],
            row.get("pair", "–"),
            *rates(row),
        ]
        for row in rows
        if row["step"] in kinds
    ]
    return results.markdown_table(header, lines)


def federation_table(rows: list[Row]) -> str:
    header = [
        "users",
        "engine",
        "pair",
        "cohort",
        "rounds",
        "users/s, median round",
        "best round",
        "evaluation of everyone, s",
        "peak GiB in rounds",
        "peak GiB",
        "load",
    ]
    lines = []
    for row in rows:
        if row["step"] == "federation":
            engine, cells = "in process", [number(row[name]) for name in ("evaluation_s", "peak_gb_rounds", "peak_gb")]
        elif row["step"] == "ray":
            engine, cells = "Ray, a supernode a user", ["–"] * 3
        else:
            continue
        speeds = [number(row["users_per_s"]), number(row["users_per_s_best_round"])]
        cohort = row.get("cohort", row["users"])
        lines.append(
            [
                f"{row['users']:,}",
                engine,
                row.get("pair", "–"),
                f"{cohort:,}",
                row["rounds"],
                *speeds,
                *cells,
                row["load"],
            ]
        )
    return results.markdown_table(header, lines)


def pfl_table(rows: list[Row]) -> str:
    titles = {
        "pfl-task": "the whole path",
        "pfl-task-arithmetic": "its arithmetic alone, called directly",
        "pfl-task-vmap": "plain loop over chunks of `torch.func.vmap`, no framework",
    }
    lines = [[title, *rates(row)] for kind, title in titles.items() for row in rows if row["step"] == kind]
    return results.markdown_table(["one core", "users/s", "users per processor second", "load"], lines)


def graphs_table(graphs: dict[str, Any]) -> str:
    titles = {
        "coclick_interactions": "interactions in the log",
        "coclick_seconds": "co-click graph of all of them, s",
        "coclick_bytes_per_edge": "bytes an edge",
        "visit_steps_per_s": "steps of random walks per s",
        "subgraph_users_per_s": "local subgraphs per s, 4,096 at once",
        "subgraph_bytes_fp32": "bytes that a subgraph adds to a recommendation, fp32",
        "subgraph_bytes_int8": "the same, int8",
        "peak_rss_mb": "peak memory, MiB",
    }
    figures = graphs["headline"]
    lines = [[title, number(figures[name])] for name, title in titles.items() if name in figures]
    table = results.markdown_table(["graphs, one core", "measured"], lines)
    return f"{table}\n\n`{graphs['command']}`, commit {graphs['commit']}, {graphs['date']}."


def origin(measured: dict[str, Any]) -> str:
    machine = measured["machine"]
    return (
        f"`{measured['command']}`, commit {measured['commit']}, {measured['date']}, on {machine['cores']} cores of"
        f" {machine['cpu']}, {machine['memory_gb']:.0f} GB, Python {machine['python']}, torch {machine['torch']}."
    )


def rates(row: Row) -> list[str]:
    return [number(row["users_per_s"]), number(row["users_per_cpu_s"]), str(row["load"])]


def number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
