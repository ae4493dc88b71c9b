"""``fedquilt privacy``: plan a budget, verify a ledger, state what was promised. Each verb has its own file."""

from __future__ import annotations

import typer

from cli import privacy_plan, privacy_statement, privacy_verify

app = typer.Typer(name="privacy", help="User-level privacy: plan, verify, state.", no_args_is_help=True)
app.command("plan")(privacy_plan.plan)
app.command("verify")(privacy_verify.verify)
app.command("statement")(privacy_statement.statement)
