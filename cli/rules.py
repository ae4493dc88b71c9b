"""``fedquilt rules``: aggregators and pre-rules, what they withstand, what they need, what they cost."""

from __future__ import annotations

from typing import Any

import typer

from cli.options import Json, new_table, print_json, print_table


def rules(as_json: Json = False) -> None:
    """List aggregation rules and pre-rules: source, breakdown point, users needed, cost."""
    from strategies.rules import AGGREGATORS, PRE_RULES

    found = {name: _aggregator(AGGREGATORS[name]()) for name in AGGREGATORS}
    before = {name: _pre_rule(PRE_RULES[name]()) for name in PRE_RULES}
    if as_json:
        print_json({"aggregators": found, "pre_rules": before})
        return
    table = new_table("aggregators (federation.aggregator)", "name", "breakdown\npoint", "K needed", "cost", "source")
    for name, row in found.items():
        table.add_row(name, f"{row['breakdown']:g}", row["needed"], row["cost"], row["source"])
    print_table(table)
    table = new_table("pre-rules (federation.pre_rules)", "name", "K needed", "cost", "source")
    for name, row in before.items():
        table.add_row(name, row["needed"], row["cost"], row["source"])
    print_table(table)
    typer.echo("f: num_byzantine, the liars to withstand; K: users of a round. A rule of your own: docs/plugin.md")


def _aggregator(rule: Any) -> dict[str, Any]:
    from dataclasses import asdict

    from strategies.facts import facts_of

    return {**asdict(facts_of(rule)), "options": _options(rule)}


def _pre_rule(rule: Any) -> dict[str, Any]:
    from strategies.facts import needed_text

    return {"source": rule.source, "cost": rule.cost, "needed": needed_text(rule), "options": _options(rule)}


def _options(rule: Any) -> dict[str, Any]:
    """What a configuration can set, with its default."""
    from dataclasses import fields

    plain = (bool, int, float, str, dict, type(None))
    values = {field.name: getattr(rule, field.name) for field in fields(rule) if field.repr}
    return {name: value for name, value in values.items() if isinstance(value, plain)}
