"""A statement for people: rows of its table, lines of text, and the page. All of it follows from the facts alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cli.statement_charts import burn_down_chart, curve_chart


def table_of(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(name, value) of the facts that fit a line."""
    budget = facts["budget_epsilon"]
    released = "; ".join(f"{one['count']} × {one['what']}" for one in facts["releases"].values())
    return [
        ("epsilon, delta", f"{'none' if facts['epsilon'] is None else told(facts['epsilon'])} at {facts['delta']:.3g}"),
        ("budget", "none was set" if budget is None else f"epsilon {budget:g}"),
        ("by rounds taken part in", _by_user(facts)),
        ("privacy unit", facts["unit"]),
        ("neighbours", facts["neighbours"]),
        ("mechanism", "; ".join([facts["mechanism"], *facts["particulars"]])),
        ("sampler as executed", facts["sampler"]),
        ("sampling observed", facts["sampling_observed"]),
        ("clipping norm", f"{facts['clipping_norm']:g}"),
        ("noise multiplier", f"{facts['noise_multiplier']:g}, {facts['randomness']} randomness"),
        ("rounds", f"{facts['rounds']} released, {facts['aborted_rounds']} aborted"),
        ("accountant", facts["accountant"]),
        ("released, and to whom", released or "nothing"),
        ("not covered", facts["outside"]),
        ("most rounds of one user", str(facts["most_participations"] or "not recorded")),
        ("audit", facts["audit_in_a_line"]),
        ("deviations", str(len(facts["deviations"]) or "none")),
    ]


def told(epsilon: float | None) -> str:
    return "infinite" if epsilon is None else f"{epsilon:.3f}"


def by_delta(facts: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(accountant, delta, epsilon), the largest delta first; an accountant that refused says why."""
    rows = []
    for name, found in facts["epsilons"].items():
        if isinstance(found, str):
            rows.append((name, "", found))
            continue
        for delta in sorted(found, key=float, reverse=True):
            rows.append((name, delta, told(found[delta])))
    return rows


def lines_of(facts: Mapping[str, Any], words: list[str]) -> Iterator[str]:
    """The whole statement as text, but for findings."""
    yield from words
    yield ""
    for name, value in table_of(facts):
        yield f"{name:28} {value}"
    yield "\nepsilon at several deltas"
    for name, delta, epsilon in by_delta(facts):
        yield f"  {name:12} {delta:>10} {epsilon:>10}"
    if facts["burn_down"]:
        yield f"\nspent round by round, at delta {facts['delta']:.3g} (rdp)"
    for round_, epsilon in _few(facts["burn_down"]):
        yield f"  round {round_:<6} {told(epsilon):>10}"
    if facts["assumptions"]:
        yield "\nthe same run under every assumption"
    for row in facts["assumptions"]:
        mark = "<-- as executed; " if row["executed"] else ""
        yield (
            f"  {row['sampling']:12} {row['neighbours']:14} {row['accountant']:5} {told(row['epsilon']):>10}"
            f"  {mark}{row['note']}"
        )
    for deviation in facts["deviations"]:
        yield f"deviation: {deviation}"


def page(facts: Mapping[str, Any], signature: Mapping[str, str] | None) -> str:
    """Holds the canonical facts too, so that it can be made again from them (``statement_check``)."""
    from jinja2 import Environment, FileSystemLoader

    from fedquilt.privacy.events import canonical
    from fedquilt.privacy.statement import in_words

    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True)
    return environment.get_template("privacy_statement.html.j2").render(
        f=facts,
        words=in_words(facts),
        table=table_of(facts),
        by_delta=by_delta(facts),
        told=told,
        burn_down=burn_down_chart(facts["burn_down"], facts["budget_epsilon"]),
        curve=curve_chart(facts["epsilons"]),
        signature=signature,
        source=canonical(facts),
        signed=canonical(signature),
    )


def _by_user(facts: Mapping[str, Any]) -> str:
    users = facts["epsilon_by_user_quantile"]
    if not users:
        return f"not told: {facts['epsilon_by_user_why_not']}"
    shares = ", ".join(f"{float(q):.0%} of users: {spent:.2f}" for q, spent in users.items() if float(q) > 0)
    return f"{shares} (epsilon without credit for secret cohorts)"


def _few(rows: list[Any], most: int = 12) -> list[Any]:
    """The last row, and of the others evenly as many."""
    if len(rows) <= most:
        return rows
    return [rows[round(place * (len(rows) - 1) / (most - 1))] for place in range(most)]
