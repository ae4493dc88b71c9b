"""``fedquilt scan RUN``: does the patch of a run hold a trigger?"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.options import Json, new_table, number, print_json, print_table

if TYPE_CHECKING:
    import numpy as np

    from fedquilt.config import Config


def scan(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    size: Annotated[int, typer.Option(min=1, help="Items that a trigger is thought to have.")] = 4,
    threshold: Annotated[
        float, typer.Option(min=0, help="Score above which an item is suspected, in units of an ordinary click's pull.")
    ] = 4.5,
    as_json: Json = False,
) -> None:
    """Click rare items before ordinary contexts, and name those whose scores the patch then raises abnormally."""
    from cli.run_patch import base_and_patch
    from fedquilt.graphs.datasets import load_split
    from fedquilt.runs import RunFolder

    folder = RunFolder.open(run)
    base, patch_P = base_and_patch(folder)
    popularity_I = load_split(folder.config.data, folder.config.split).cloud.popularity_I
    found = scan_patch(folder.config, base, patch_P, popularity_I, size, threshold)
    if as_json:
        print_json(found)
        return
    if not found["suspects"]:
        typer.echo(f"no item above {threshold:g}; the largest score is {found['largest']:.2f}")
        return
    table = new_table(f"suspected targets in {folder.name}", "item", "score", "raised most by clicks on")
    for suspect in found["suspects"]:
        table.add_row(str(suspect["item"]), number(suspect["score"]), ", ".join(map(str, suspect["trigger"])))
    print_table(table)


def scan_patch(
    config: Config,
    base: Mapping[str, np.ndarray],
    patch_P: np.ndarray,
    popularity_I: np.ndarray,
    size: int = 4,
    threshold: float = 4.5,
) -> dict[str, Any]:
    """{"suspects": [{"item", "score", "trigger"}], "largest", "probes"}, against the base model without a patch."""
    from dataclasses import asdict

    from fedquilt.seeds import generator_for
    from fedquilt.triggers import suspicions, trigger_scores
    from server.triggers import Scanner

    scanner = Scanner.of(config, base, popularity_I)
    raised_RI, control_CI = scanner.scan(patch_P, None, generator_for(config.seed, use="trigger-scan"))
    suspects = suspicions(raised_RI, control_CI, scanner.rare_R, size, threshold)
    return {
        "suspects": [asdict(suspect) for suspect in suspects],
        "largest": float(trigger_scores(raised_RI, control_CI, size).max()),
        "probes": len(scanner.rare_R),
    }
