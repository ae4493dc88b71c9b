"""The matrix as one HTML file: a heat map a figure, attacks down, rules × fractions across. No script, no network."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from cli.attack_options import FIGURES, NONE, mean_of

_STYLE = """
body { font: 14px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 90rem; padding: 0 1rem; color: #1c2733; }
table { border-collapse: collapse; margin: .5rem 0 2rem; }
caption { text-align: left; font-weight: 600; padding: .3rem 0; }
th, td { padding: .3rem .6rem; border: 1px solid #d7dde4; text-align: right; font-variant-numeric: tabular-nums; }
th { background: #f4f6f8; font-weight: 500; } tbody th { text-align: left; } .failed { color: #8a1f11; }
small { color: #5c6b7a; } @media (prefers-color-scheme: dark) { body { background: #12181f; color: #dfe6ee; }
th { background: #1d2630; } th, td { border-color: #33404d; } td[style] { color: #111; } }
"""
Row = Mapping[str, Any]
Group = dict[tuple[str, str, float], list[Row]]


def write_heatmap(path: Path, rows: Sequence[Row]) -> None:
    """Atomically, so that a browser may watch it grow."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(heatmap(rows))
    os.replace(partial, path)


def heatmap(rows: Sequence[Row]) -> str:
    groups: Group = {}
    for row in rows:
        groups.setdefault((row["attack"], row["rule"], row["malicious"]), []).append(row)
    tables = "\n".join(filter(None, (_table(name, groups) for name in FIGURES)))
    errors = sorted({f"{row['attack']} × {row['rule']}: {row['error']}" for row in rows if "error" in row})
    failed = "".join(f"<li class=failed>{escape(error)}</li>" for error in errors)
    head = f"<!doctype html><html lang=en><meta charset=utf-8><title>Attacks × rules</title><style>{_STYLE}</style>"
    note = (
        "Means over seeds, ± half of the 95 % t interval. Green is good for honest users, red is bad; the scale is that"
        " of each table. Clean: the same rule without an attack, measured on the same honest users."
    )
    return f"{head}<h1>Attacks × rules</h1><p><small>{note}</small></p>{tables}<ul>{failed}</ul></html>\n"


def _table(figure: str, groups: Group) -> str:
    """One heat map; "" for a figure that no row has."""
    cells = {key: mean_of([row for row in rows if "error" not in row], figure) for key, rows in groups.items()}
    known = [cell[0] for cell in cells.values() if cell]
    if not known:
        return ""
    attacks = [*dict.fromkeys(attack for attack, _, _ in groups)]
    columns = _columns(groups)
    low, high = min(known), max(known)
    better = FIGURES[figure][1]
    head = "".join(f"<th>{escape(rule)}<br><small>{share:.1%}</small></th>" for rule, share in columns)
    body = ""
    for attack in attacks:
        found = [_find(cells, groups, attack, rule, share) for rule, share in columns]
        tds = "".join(_td(cell, low, high, better, failed) for cell, failed in found)
        body += f"<tr><th>{'clean' if attack == NONE else escape(attack)}</th>{tds}</tr>"
    title = escape(FIGURES[figure][2])
    return f"<table><caption>{title}</caption><thead><tr><th></th>{head}</tr></thead><tbody>{body}</tbody></table>"


def _columns(groups: Group) -> list[tuple[str, float]]:
    """Rule by rule, fractions rising; a clean run belongs to every fraction."""
    rules = [*dict.fromkeys(rule for _, rule, _ in groups)]
    shares = sorted({share for _, _, share in groups})
    return [(rule, share) for rule in rules for share in shares]


def _find(
    cells: Mapping[tuple[str, str, float], tuple[float, float] | None],
    groups: Group,
    attack: str,
    rule: str,
    share: float,
) -> tuple[tuple[float, float] | None, bool]:
    key = (attack, rule, share)
    if attack == NONE:
        key = next((k for k in groups if k[0] == NONE and k[1] == rule), key)
    failed = key in groups and all("error" in row for row in groups[key])
    return cells.get(key), failed


def _td(cell: tuple[float, float] | None, low: float, high: float, better: bool, failed: bool) -> str:
    if cell is None:
        return f"<td{' class=failed' if failed else ''}>{'failed' if failed else '–'}</td>"
    mean, half = cell
    goodness = (mean - low) / (high - low) if high > low else 0.5
    goodness = goodness if better else 1 - goodness
    spread = "" if half != half else f" <small>± {half:.3f}</small>"
    return f'<td style="background:hsl({round(120 * goodness)} 55% 78%)">{mean:.3f}{spread}</td>'
