"""``fedquilt privacy``: plan a budget, verify a ledger, sign it, audit a run, state what was promised, make a graph."""

from __future__ import annotations

import typer

from cli import privacy_audit, privacy_graph, privacy_plan, privacy_sign, privacy_statement, privacy_verify

app = typer.Typer(
    name="privacy", help="User-level privacy: plan, verify, sign, audit, state; a graph.", no_args_is_help=True
)
app.command("plan")(privacy_plan.plan)
app.command("verify")(privacy_verify.verify)
app.command("keygen")(privacy_sign.keygen)
app.command("sign")(privacy_sign.sign)
app.command("audit")(privacy_audit.audit)
app.command("graph")(privacy_graph.graph)
app.command("statement")(privacy_statement.statement)
