"""``fedquilt evaluate RUN``: the tables of a finished run, at any K."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.options import Json, print_json


def evaluate(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    ks: Annotated[list[int] | None, typer.Option("--k", min=1, help="List length; repeat for several.")] = None,
    as_json: Json = False,
) -> None:
    """Rebuild a run's tables from its per-user file."""
    from cli.tables import results_table
    from fedquilt.runs import RunFolder
    from server.evaluate import EVALUATION, tables_of

    folder = RunFolder.open(run)
    lengths = tuple(sorted(set(ks))) if ks else folder.config.evaluation.ks
    results = tables_of(folder.read_arrays(EVALUATION), lengths)
    if as_json:
        print_json(results)
        return
    for k in lengths:
        results_table(results, (f"HR@{k}", f"NDCG@{k}"))
