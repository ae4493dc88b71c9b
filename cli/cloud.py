"""``fedquilt cloud``: the global graph model. One file a verb."""

from __future__ import annotations

import typer

from cli import cloud_embed, cloud_index, cloud_neighbours, cloud_train

app = typer.Typer(
    name="cloud", help="The cloud's global graph model: train it, embed the catalogue.", no_args_is_help=True
)
app.command("train")(cloud_train.train)
app.command("embed")(cloud_embed.embed)
app.command("index")(cloud_index.index)
app.command("neighbours")(cloud_neighbours.neighbours)
