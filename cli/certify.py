"""``fedquilt certify RUN``: lists by a vote of groups of clicks, and how many fake clicks they survive for certain."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from cli.options import Json, new_table, print_json, print_table


def certify(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    groups: Annotated[int, typer.Option(min=0, help="Groups of clicks; 0: vote.groups of the run, or 8.")] = 0,
    ballot: Annotated[int, typer.Option(min=0, help="Items that a group votes for; 0: vote.ballot of the run.")] = 0,
    largest: Annotated[int, typer.Option("--insertions", min=0, help="Largest number of fake clicks.")] = 5,
    users: Annotated[int, typer.Option(min=1, help="At most so many users with held-out clicks.")] = 1000,
    as_json: Json = False,
) -> None:
    """NDCG@10 of the vote, certified HR@10 and the abstain rate by the number of inserted clicks."""
    from cli.certify_run import certified_table
    from fedquilt.runs import RunFolder

    folder = RunFolder.open(run)
    found = certified_table(folder, groups, ballot, largest, users)
    if as_json:
        print_json(found)
        return
    _table(folder.name, found)


def _table(name: str, found: dict[str, Any]) -> None:
    title = f"{name}: {found['users']:,} users, {found['groups']} groups, ballots of {found['ballot']}\n"
    title += f"NDCG@10 without a vote {found['plain']['NDCG@10']:.4f}, HR@10 {found['plain']['HR@10']:.4f}"
    table = new_table(title, "inserted clicks", "certified\nHR@10", "certified\nNDCG@10", "abstains", "certified items")
    for row in found["rows"]:
        cells = [f"{row[key]:.4f}" for key in ("HR@10", "NDCG@10", "abstain_rate")]
        table.add_row(str(row["insertions"]), *cells, f"{row['certified_items']:.2f}")
    print_table(table)
