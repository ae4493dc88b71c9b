"""``fedquilt privacy audit``: what an attacker can show of a run's mechanism, beside what is proven of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.options import Json, new_table, print_json, print_table


def audit(
    where: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder.")],
    canaries: Annotated[int, typer.Option("--canaries", min=1, help="Canary users, if there is room for as many.")] = (
        1000
    ),
    confidence: Annotated[float, typer.Option("--confidence", help="Of the lower bounds.")] = 0.95,
    seed: Annotated[int, typer.Option("--seed", help="Of the canaries' coins and of the audit's own noise.")] = 0,
    rounds: Annotated[int | None, typer.Option("--rounds", min=1, help="Fewer or more than the run released.")] = None,
    as_json: Json = False,
) -> None:
    """Run the mechanism again with canaries among the users; exit code 1 where a claim or a check does not hold."""
    from client.app import make_client_app
    from client.canaries import CanaryTasks, canary_spec
    from fedquilt.privacy.audit.report import AUDIT
    from fedquilt.runs import RunFolder
    from server.audit import Settings
    from server.audit import audit as audit_run

    run = RunFolder.open(where)
    settings = Settings(canaries, _confidence(confidence), seed, rounds)
    facts = audit_run(run, settings, lambda them, users_U: make_client_app(CanaryTasks(them, users_U)), canary_spec)
    run.write_json(AUDIT, facts)
    if as_json:
        print_json(facts)
    else:
        _tell(where, facts)
    if not facts["holds"]:
        raise typer.Exit(1)


def _confidence(given: float) -> float:
    if not 0.5 <= given < 1:
        raise typer.BadParameter(f"--confidence lies in [0.5, 1); got {given}")
    return given


def _tell(where: Path, facts: Mapping[str, Any]) -> None:
    table = new_table(f"{where}: epsilon at delta {facts['delta']:.3g}", "bound", "epsilon")
    for method, lower in facts["lower_by_method"].items():
        table.add_row(f"at least, {method}", _number(lower))
    table.add_row("at most, proven", _number(facts["upper"]))
    print_table(table)
    typer.echo(
        f"{facts['canaries']:,} canaries ({facts['canaries_in']:,} in) over {facts['rounds']} rounds:"
        f" {facts['correct']} of {facts['guesses']} guesses right"
    )
    if noise := facts["noise_measured"]:
        typer.echo(
            f"noise as executed: {noise['share_of_claim_at_least']:.1%} to {noise['share_of_claim_at_most']:.1%}"
            " of the std that the ledger says"
        )
    for finding in facts["findings"]:
        typer.secho(finding, fg=typer.colors.RED)
    typer.echo("holds" if facts["holds"] else f"DOES NOT HOLD: {len(facts['findings'])} findings")


def _number(value: float | None) -> str:
    return "infinite" if value is None else f"{value:.4f}"
