"""``fedquilt runs``: what ran, how far it came, what it reached."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from cli.options import Json, Root, new_table, number, print_json, print_table
from fedquilt.errors import RunError
from fedquilt.lock import is_alive

if TYPE_CHECKING:
    from fedquilt.runs import RunFolder


def runs(out: Root = Path("runs"), as_json: Json = False) -> None:
    """List the runs in a folder."""
    from fedquilt.runs import list_runs

    if not out.is_dir():
        raise RunError(f"no folder {out}: nothing has run there; choose another --out")
    rows = [_row(run) for run in list_runs(out)]
    if as_json:
        print_json(rows)
        return
    table = new_table(
        f"runs in {out}", "run", "state", "data", "protocol", "rounds", "NDCG@10\ncloud", "NDCG@10\npersonal"
    )
    for row in rows:
        cells = [row[key] if row[key] is not None else "–" for key in ("state", "dataset", "protocol", "rounds")]
        table.add_row(row["run"], *cells, number(row["base"]), number(row["personal"]))
    print_table(table)
    if any(row["state"] in ("interrupted", "stopped") for row in rows):
        typer.echo("go on with one that stopped:  fedquilt simulate --resume RUN")


def _row(run: RunFolder) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(("dataset", "protocol", "rounds", "base", "personal"))
    try:
        config, results = run.config, run.read_json("results.json") if (run.path / "results.json").exists() else {}
        done = max((record["round"] for record in run.records("round")), default=0)
        row |= {"dataset": config.data.dataset, "protocol": config.split.protocol}
        row |= {"rounds": f"{done}/{config.federation.rounds}"}
        for variant in ("base", "personal"):
            row[variant] = results.get("tables", {}).get(variant, {}).get("all", {}).get("NDCG@10")
        state = _state(run.status)
    except RunError:
        state = "damaged"
    return {"run": run.name, "path": str(run.path), "state": state, **row}


def _state(status: dict[str, Any]) -> str:
    """A run that says "running" but whose process is gone was killed."""
    state = status.get("state", "new")
    if state != "running" or "pid" not in status:
        return state
    return state if is_alive(status["pid"]) else "stopped"
