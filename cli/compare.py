"""``fedquilt compare RUN RUN``: who gained, and is it more than noise."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.options import Json, print_json


def compare(
    run_a: Annotated[Path, typer.Argument(metavar="RUN", help="The baseline.")],
    run_b: Annotated[Path, typer.Argument(metavar="RUN", help="The other one; may be the same run.")],
    variant: Annotated[str, typer.Option(help="Variant of both: stale, base, global or personal.")] = "personal",
    against: Annotated[str | None, typer.Option(help="Variant of the first run, if another.")] = None,
    metric: Annotated[str, typer.Option(help="Metric that is shown by group.")] = "NDCG@10",
    as_json: Json = False,
) -> None:
    """Compare two runs, or two variants of one, user by user."""
    from cli.tables import comparison_table
    from fedquilt.runs import RunFolder
    from server.compare import compare_runs

    first, second = RunFolder.open(run_a), RunFolder.open(run_b)
    result = compare_runs(first, second, (against or variant, variant), first.config.evaluation.ks, metric)
    if as_json:
        print_json(result)
    else:
        comparison_table(result)
