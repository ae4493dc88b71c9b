"""``fedquilt privacy plan``: noise for a target, or rounds for a budget, and every assumption side by side."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.options import Json, new_table, number, print_json, print_table
from fedquilt.errors import PrivacyError

if TYPE_CHECKING:
    from fedquilt.privacy.plan import Plan


def plan(
    users: Annotated[int, typer.Option("--users", help="N, users in the population.")],
    cohort_size: Annotated[int, typer.Option("--cohort-size", help="Users drawn a round, on average.")],
    epsilon: Annotated[float | None, typer.Option("--epsilon", help="Target, or the budget with --noise.")] = None,
    rounds: Annotated[int | None, typer.Option("--rounds", help="Rounds of the run.")] = None,
    noise: Annotated[float | None, typer.Option("--noise", help="Noise multiplier: std / clipping norm.")] = None,
    delta: Annotated[float | None, typer.Option("--delta", help="Below 1/N; N^-1.1 unless given.")] = None,
    sampler: Annotated[
        str, typer.Option("--sampler", help="poisson, fixed-size or none: what will be run.")
    ] = "poisson",
    accountant: Annotated[str, typer.Option("--accountant", help="rdp, pld, prv or gdp.")] = "rdp",
    prv: Annotated[bool, typer.Option("--prv", help="Also the PRV accountant in the table (loads torch).")] = False,
    plot: Annotated[Path | None, typer.Option("--plot", help="Write epsilon by rounds to this .png.")] = None,
    as_json: Json = False,
) -> None:
    """Give two of --epsilon, --rounds and --noise; the third is found."""
    from fedquilt.privacy.plan import assumptions, curve

    made = _solve(users, cohort_size, epsilon, rounds, noise, delta, sampler, accountant)
    rows = assumptions(made, cohort_size, ("pld", "rdp", "gdp", "prv") if prv else ("pld", "rdp", "gdp"))
    by_rounds = curve(made)
    if plot is not None:
        _plot(plot, by_rounds, made)
    facts: dict[str, Any] = {
        "users": users,
        "cohort_size": cohort_size,
        "sampler": sampler,
        "accountant": accountant,
        "rounds": made.rounds,
        "noise_multiplier": made.noise_multiplier,
        "epsilon": made.epsilon,
        "delta": made.delta,
    }
    if as_json:
        print_json({**facts, "assumptions": [asdict(row) for row in rows], "by_rounds": by_rounds})
        return
    typer.echo(
        f"{made.rounds:,} rounds at noise multiplier {made.noise_multiplier:.4g}: epsilon {made.epsilon:.3f} at delta"
        f" {made.delta:.3g} ({accountant}, {sampler}, about {cohort_size:,} of {users:,} users a round)"
    )
    table = new_table("The same noise under every assumption", "sampling", "neighbours", "accountant", "epsilon")
    table.add_column("this plan", justify="center")
    table.add_column("what it takes", overflow="fold")
    for row in rows:
        mark = "<--" if row.executed else ""
        table.add_row(row.sampling, row.neighbours, row.accountant, f"{row.epsilon:,.3f}", mark, row.note)
    print_table(table)
    burn = new_table("Spent by rounds", "rounds", f"epsilon ({accountant})")
    for count, spent in by_rounds:
        burn.add_row(number(count), f"{spent:.3f}")
    print_table(burn)


def _solve(
    users: int,
    cohort_size: int,
    epsilon: float | None,
    rounds: int | None,
    noise: float | None,
    delta: float | None,
    sampler: str,
    accountant: str,
) -> Plan:
    from fedquilt.privacy.accountants import accountant_named, require_atom
    from fedquilt.privacy.plan import Plan, atom_for, delta_for, plan_noise, plan_rounds, sampler_for

    drawn = sampler_for(sampler, cohort_size, users)
    require_atom(accountant_named(accountant), atom_for(drawn, 1.0))
    if sum(value is not None for value in (epsilon, rounds, noise)) != 2:
        raise PrivacyError("give exactly two of --epsilon, --rounds and --noise; the third is found")
    if noise is None and epsilon is not None and rounds is not None:
        return plan_noise(epsilon, drawn, rounds, users, delta, accountant)
    if rounds is None and epsilon is not None and noise is not None:
        return plan_rounds(epsilon, drawn, noise, users, delta, accountant)
    assert noise is not None  # two of three were given
    assert rounds is not None
    if noise <= 0 or rounds < 1:
        raise PrivacyError(f"a plan needs a positive noise multiplier and rounds; got {noise:g} and {rounds}")
    return Plan(drawn, noise, rounds, users, delta_for(delta, users), accountant)


def _plot(path: Path, by_rounds: list[tuple[int, float]], made: Plan) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    axes.plot(*zip(*by_rounds, strict=True), marker="o", markersize=3)
    axes.set(xlabel="rounds", ylabel=f"ε at δ = {made.delta:.2g} ({made.accountant})", ylim=(0, None))
    axes.set_title(f"noise multiplier {made.noise_multiplier:.3g}, {made.sampler.kind} sampling", fontsize=10)
    axes.grid(alpha=0.3)
    try:
        figure.savefig(path, dpi=130)
    except (OSError, ValueError) as error:
        raise PrivacyError(f"cannot write the plot {path}: {error}") from None
