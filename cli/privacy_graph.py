"""``fedquilt privacy graph``: the co-click graph from devices whose clicks stay where they are."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.options import Json, new_table, print_json, print_table


def graph(
    where: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder, whose ledger is charged.")],
    epsilon: Annotated[float, typer.Option("--epsilon", min=0, help="Of this release alone, at the run's delta.")] = 0,
    noise: Annotated[float, typer.Option("--noise", min=0, help="Instead: std of the noise / a user's part.")] = 0,
    max_pairs: Annotated[int, typer.Option("--max-pairs", min=1, help="Pairs of items that a user may add.")] = 512,
    width: Annotated[int, typer.Option("--width", min=1, help="Cells of a row of the hashed table.")] = 1 << 20,
    depth: Annotated[int, typer.Option("--depth", min=1, help="Rows of the hashed table.")] = 5,
    threshold: Annotated[
        float, typer.Option("--threshold", min=0, help="Pairs survive above so many stds of noise.")
    ] = 2.0,
    spectral: Annotated[
        bool, typer.Option("--spectral/--no-spectral", help="Read small catalogues through leading eigenvectors.")
    ] = True,
    as_json: Json = False,
) -> None:
    """Ask every device for noised, bounded pairs, charge the ledger once, write private_graph.npz into the run."""
    from cli.progress import progress
    from client.app import app as client_app
    from fedquilt.runs import RunFolder
    from server.in_process import InProcessGrid
    from server.private_graph import GraphWish, private_graph
    from server.simulate import prepare

    run = RunFolder.open(where)
    wish = GraphWish(epsilon, noise, max_pairs, width, depth, threshold, spectral)
    with progress(as_json) as report:
        deployment = prepare(run.config, run, report)
        grid = InProcessGrid(client_app, run.config.federation.num_supernodes)
        facts = private_graph(grid, run.config, deployment, run, wish).facts
    if as_json:
        print_json(facts)
        return
    table = new_table(f"{where}: private co-click graph", "", "")
    for name, value in facts.items():
        table.add_row(name.replace("_", " "), f"{value:.6g}" if isinstance(value, float) else str(value))
    print_table(table)
