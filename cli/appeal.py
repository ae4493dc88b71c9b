"""``fedquilt appeal``: whom a run suspects, and a client's score set back, for a reason that is written down."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.options import Json, new_table, number, print_json, print_table
from fedquilt.errors import RunError

if TYPE_CHECKING:
    from fedquilt.runs import RunFolder
    from server.appeals import Suspect


def appeal(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    user: Annotated[int | None, typer.Argument(help="Client id; without one, suspects are listed.")] = None,
    reason: Annotated[str, typer.Option(help="Why the client is not what it was taken for; kept with the run.")] = "",
    as_json: Json = False,
) -> None:
    """List the clients that a run suspects, or clear one of them. It counts from the run's next round on."""
    from fedquilt.runs import RunFolder
    from server.appeals import suspects

    folder = RunFolder.open(run)
    if user is not None:
        _clear(folder, user, reason, as_json)
        return
    if reason:
        raise RunError("--reason is of an appeal: name the client too")
    found = suspects(folder)
    if as_json:
        print_json([vars(suspect) for suspect in found])
        return
    _table(folder, found)


def _clear(folder: RunFolder, user: int, reason: str, as_json: bool) -> None:
    from cli.report import write_report
    from server.appeals import appeal as make_appeal

    made = make_appeal(folder, user, reason)
    if folder.report_path.exists():
        write_report(folder)
    if as_json:
        print_json(vars(made))
        return
    typer.echo(f"client {user}: score {made.score:.2f} set back after round {made.round}: {made.reason}")


def _table(folder: RunFolder, found: list[Suspect]) -> None:
    if not found:
        typer.echo(f"{folder.path}: nobody is suspected")
        return
    table = new_table(f"suspected in {folder.name}", "client", "score", "drawn", "charges", "last")
    for suspect in found:
        last = suspect.charges[-1] if suspect.charges else None
        told = f"round {last['round']}: {last['why']}" if last else "–"
        drawn = "no" if suspect.excluded else "yes"
        table.add_row(str(suspect.client_id), number(suspect.score), drawn, str(len(suspect.charges)), told)
    print_table(table)
