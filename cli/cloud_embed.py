"""``fedquilt cloud embed MODEL``: the vectors of all items of a trained graph model, as shards on disk."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cli.options import Json, print_json

if TYPE_CHECKING:
    from server.embed import Embedded
    from server.embed_naive import Projections

Model = Annotated[Path, typer.Argument(help="Folder of a trained graph model (`fedquilt cloud train --out`).")]
Out = Annotated[Path | None, typer.Option("--out", help="Folder for the vectors (default: MODEL/vectors).")]
Engine = Annotated[
    Literal["in-process", "ray"],
    typer.Option("--engine", help="ray: all cores of this machine, or the cluster at RAY_ADDRESS (shared disk)."),
]


def embed(model: Model, out: Out = None, engine: Engine = "in-process", as_json: Json = False) -> None:
    """Compute the vectors of all items, each projection once. Goes on from where an interrupted call stopped."""
    from contextlib import nullcontext

    from cli.progress import progress
    from server.embed import embed_all, in_process
    from server.embed_naive import count_projections
    from server.embed_ray import on_ray
    from server.graph_training.model_folder import load_model

    trained = load_model(model)
    folder = out or model / "vectors"
    features_IF, neighbours = trained.features.values_IF, trained.neighbours
    try:
        with progress(as_json) as report, on_ray() if engine == "ray" else nullcontext(in_process) as executor:
            embedded = embed_all(trained.model, features_IF, neighbours, folder, executor, report)
    except KeyboardInterrupt:
        typer.secho("\nInterrupted; the same command goes on from what is finished.", err=True)
        raise typer.Exit(130) from None
    told = _told(embedded, count_projections(neighbours, len(trained.model.layers)), engine)
    if as_json:
        print_json(told)
    else:
        _print(told)


def _told(embedded: Embedded, projections: Projections, engine: str) -> dict[str, Any]:
    items, dim = embedded.vectors.shape
    return {
        "folder": embedded.vectors.folder,
        "items": items,
        "dim": dim,
        "shards": len(embedded.vectors.shards),
        "engine": engine,
        "seconds": embedded.seconds,
        "items_per_s": items / embedded.seconds,
        "step_seconds": embedded.step_seconds,
        "rows_continued": embedded.continued,
        "projections": projections.needed,
        "projections_naive": projections.naive,
        "projections_repeated": projections.repeated,
        "projections_counted_items": projections.counted,
        **{name: embedded.vectors.facts[name] for name in ("model_hash", "inputs_hash")},
    }


def _print(told: dict[str, Any]) -> None:
    typer.echo(
        f"{told['items']:,} vectors of {told['dim']} in {told['seconds']:.1f} s ({told['items_per_s']:,.0f} items/s),"
        f" {told['shards']} {'shard' if told['shards'] == 1 else 'shards'} in {told['folder']}"
    )
    if told["rows_continued"]:
        typer.echo(f"{told['rows_continued']:,} rows of an interrupted call were used again")
    if told["projections"]:
        about = "" if told["projections_counted_items"] == told["items"] else "about "
        typer.echo(
            f"{told['projections']:,} projections; item by item they would be {about}{told['projections_naive']:,},"
            f" {told['projections_repeated']:,} of them repeated"
        )
