"""``fedquilt conformance``: does a rule keep the contract?"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from cli.options import Json, new_table, print_json, print_table


def conformance(
    rule: Annotated[str, typer.Argument(help='A rule by name, or "package.module:Rule".')],
    options: Annotated[list[str] | None, typer.Option("--set", help="option=value of the rule, TOML.")] = None,
    seed: Annotated[int, typer.Option(help="Of the drawn updates.")] = 0,
    as_json: Json = False,
) -> None:
    """Run the contract suite on an aggregation rule. Exit code 1 where a check fails."""
    from dataclasses import asdict

    from strategies.conformance import check_rule, require_rule
    from strategies.facts import facts_of
    from strategies.rules import make_aggregator

    made = make_aggregator(rule, _parsed(options or []), "--set")
    require_rule(made)
    findings = check_rule(made, seed)
    failed = sum(finding.outcome == "fails" for finding in findings)
    if as_json:
        facts = asdict(facts_of(made))
        print_json({"rule": rule, "failed": failed, "facts": facts, "checks": [asdict(one) for one in findings]})
    else:
        table = new_table(f"{made!r}", "check", "", "")
        for finding in findings:
            table.add_row(finding.check, finding.outcome, finding.detail)
        print_table(table)
        typer.echo(f"{failed} of {len(findings)} checks fail" if failed else "every check that applies holds")
    if failed:
        raise typer.Exit(1)


def _parsed(options: list[str]) -> dict[str, Any]:
    """option=value pairs, read as the configuration reads them."""
    from fedquilt.config import load
    from fedquilt.errors import ConfigError

    for option in options:
        if "=" not in option:
            raise ConfigError(f"--set {option!r}: expected option=value, for example num_byzantine=2")
    return load(None, [f"federation.aggregator_options.{option}" for option in options]).federation.aggregator_options
