"""The README's tables of recommendation under attack, from ``results.json`` alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t

from experiments.results import markdown_table, origin, read_results, replace_block
from experiments.robustness.headline import Verdict, clean_costs, verdicts

Row = dict[str, Any]
FIGURES: dict[str, tuple[str, Callable[[Row], float | None]]] = {
    "ndcg": ("NDCG@10 of honest users", lambda row: row["test"]["global"]["NDCG@10"]),
    "tail": ("NDCG@10 of honest tail users", lambda row: row["test"]["global"]["NDCG@10 tail"]),
    "er10": ("ER@10 of the target, largest of all evaluations", lambda row: row["trajectory"]["ER@10"]["max"]),
    "er10_last": ("ER@10 of the target at the end, test", lambda row: row["test"]["global"]["ER@10"]),
    "rejected": ("honest users rejected", lambda row: row["rejected"]["honest"]),
    "rejected_tail": ("honest tail users rejected", lambda row: row["rejected"]["honest tail"]),
}
BRIEF = ("ndcg", "er10")  # what is told of other shares and of head targets
NONE, USUAL, JUDGED = "none", 0.2, "guarded"


def update(readme: Path, results: Path) -> None:
    """Rewrites the blocks ``headline``, ``judged`` and ``tables``."""
    held = read_results(results)
    figures = "\n".join(f"- `{name}`: {value:.3f}" for name, value in held["headline"].items())
    replace_block(readme, "headline", f"{figures}\n\n{origin(held)}")
    datasets = sorted({row["dataset"] for row in held["rows"]})
    replace_block(readme, "judged", judged(held["rows"], JUDGED))
    replace_block(readme, "tables", "\n\n".join(tables(held["rows"], dataset) for dataset in datasets))


def judged(rows: Sequence[Row], rule: str) -> str:
    """What each attack got from one rule, 20 % malicious, the worst for honest NDCG@10 first; clean runs before all."""
    at_20pct = [row for row in rows if row["malicious"] == USUAL and not row.get("set")]
    ours = [row for row in at_20pct if row["rule"] == rule]
    costs = [f"{cost:.3f} on {log} beside `{plain}`" for (log, plain), cost in clean_costs(at_20pct, ours).items()]
    found = sorted(verdicts(ours), key=lambda v: (v.rows[0]["attack"] != NONE, -(v.loss or 0)))
    titles = ("log", "targets", "attack", "seeds", "NDCG@10 lost", "ER@10 clean", "attacked", "backdoor")
    table = markdown_table([*titles, "honest rejected", "tail", "malicious"], [_judged(verdict) for verdict in found])
    return f"Share of the gain that it costs without an attack: {'; '.join(costs) or 'not measured'}.\n\n{table}"


def _judged(verdict: Verdict) -> list[str]:
    first, rejected = verdict.rows[0], verdict.rejected
    loss = "–" if verdict.loss is None or first["attack"] == NONE else f"{verdict.loss:.1%}"
    loss += f" ± {verdict.half_width:.1%}" if loss != "–" and np.isfinite(verdict.half_width) else ""
    shares = (verdict.clean_exposure, verdict.exposure, verdict.triggered)
    groups = (rejected["honest"], rejected["honest tail"], rejected["malicious"])
    numbers = ["–" if share is None else f"{share:.3f}" for share in (*shares, *groups)]
    return [first["dataset"], first["targets"], _name(first), str(len(verdict.rows)), loss, *numbers]


def tables(rows: Sequence[Row], dataset: str) -> str:
    """Attacks by rules at 20 % and tail targets, one table a figure; then other shares, and head targets.

    A cell is the mean over seeds, – where nothing was run; with three rows or more, ± half the 95 % t interval.
    """
    ours = [row for row in rows if row["dataset"] == dataset and not row.get("set")]
    usual = [row for row in ours if row["malicious"] == USUAL and row["targets"] == "tail"]
    seeds = sorted({row["seed"] for row in ours})
    bases = [row["test"]["base"]["NDCG@10"] for row in usual if row["attack"] == "none"]
    about = f"**{dataset}**, seeds {', '.join(map(str, seeds))}"
    about += f"; without a patch honest users have NDCG@10 {np.mean(bases):.4f}" if bases else ""
    parts = [
        about,
        *(f"{title}, {USUAL:.0%} malicious:\n\n{_table(usual, figure)}" for title, figure in FIGURES.values()),
    ]
    if planted := [row for row in usual if "backdoor" in row]:
        parts.append(f"Backdoor, ER@10 of the target with the trigger / without:\n\n{_backdoors(planted)}")
    if tried := [row for row in usual if "evasion" in row]:
        parts.append(f"Evasion, users who see the target after so many insertions:\n\n{_evasions(tried)}")
    if clean := [row for row in usual if row["attack"] == NONE]:
        parts.append(f"Seconds a round without attack, median, without evaluations:\n\n{_seconds(clean)}")
    others = [row for row in ours if row["malicious"] != USUAL and row["targets"] == "tail"]
    head = [row for row in ours if row["malicious"] == USUAL and row["targets"] == "head"]
    for what, part in (("other shares of malicious users", others), ("head targets", head)):
        parts += [f"{FIGURES[name][0]}, {what}:\n\n{_table(part, FIGURES[name][1])}" for name in BRIEF if part]
    return "\n\n".join(parts)


def _table(rows: Sequence[Row], figure: Callable[[Row], float | None]) -> str:
    """Rules and attacks that were run most come first."""
    rules = [rule for rule, _ in Counter(row["rule"] for row in rows).most_common()]
    names = [name for name, _ in Counter(map(_name, rows)).most_common()]
    lines = [
        [name, *(_cell([r for r in rows if _name(r) == name and r["rule"] == rule], figure) for rule in rules)]
        for name in sorted(names, key=lambda name: not name.startswith(NONE))
    ]
    return markdown_table(["attack", *rules], lines)


def _backdoors(rows: Sequence[Row]) -> str:
    lines = []
    for rule in dict.fromkeys(row["rule"] for row in rows):
        its = [row["backdoor"] for row in rows if row["rule"] == rule]
        lines.append([rule, *(_pair(its, variant) for variant in ("base", "global", "personal"))])
    return markdown_table(["rule", "no patch", "shared patch", "personal patch"], lines)


def _evasions(rows: Sequence[Row]) -> str:
    """Means over seeds, budget by budget."""
    most = max(row["evasion"]["budget"] for row in rows)
    lines = []
    for name, rule in dict.fromkeys((_name(row), row["rule"]) for row in rows):
        success = [row["evasion"]["success"] for row in rows if (_name(row), row["rule"]) == (name, rule)]
        lines.append([name, rule, *(f"{value:.3f}" for value in np.mean(success, axis=0))])
    return markdown_table(["attack", "rule", *range(most + 1)], lines)


def _seconds(rows: Sequence[Row]) -> str:
    rules = [rule for rule, _ in Counter(row["rule"] for row in rows).most_common()]
    medians = [np.median([row["seconds_a_round"] for row in rows if row["rule"] == rule]) for rule in rules]
    return markdown_table(rules, [[f"{value:.3f}" for value in medians]])


def _pair(backdoors: Sequence[dict[str, Any]], variant: str) -> str:
    means = [np.mean([each[variant][part] for each in backdoors]) for part in ("triggered", "clean")]
    return " / ".join(f"{value:.3f}" for value in means)


def _name(row: Row) -> str:
    if row["attack"] == NONE:
        return f"{NONE} (beside {row['options']['beside']})" if row["options"] else NONE
    options = ", ".join(f"{key} {value}" for key, value in row["options"].items())
    share = "" if row["malicious"] == USUAL else f" {row['malicious']:.1%}"
    return f"{row['attack']}{share}" + (f" ({options})" if options else "")


def _cell(rows: Sequence[Row], figure: Callable[[Row], float | None]) -> str:
    values = [value for row in rows if (value := figure(row)) is not None]
    if len(values) < 3:
        return f"{np.mean(values):.4f}" if values else "–"
    half = t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    return f"{np.mean(values):.4f} ± {half:.4f}"
