"""``fedquilt attack``: simulated attacks on the federation. One file a verb.

Attacks are no part of the wheel or of the app bundle, so these verbs work from a checkout only.
"""

from __future__ import annotations

import typer

from cli import attack_list, attack_matrix, attack_run

app = typer.Typer(
    name="attack", help="Simulate attacks: list them, run one, or run a matrix against rules.", no_args_is_help=True
)
app.command("list")(attack_list.list_attacks)
app.command("run")(attack_run.run)
app.command("matrix")(attack_matrix.matrix)
