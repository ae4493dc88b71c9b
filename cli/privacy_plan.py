"""``fedquilt privacy plan``: noise for a target, or rounds for a budget, and every assumption side by side."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.options import Json, new_table, number, print_json, print_table
from fedquilt.errors import PrivacyError

if TYPE_CHECKING:
    from fedquilt.privacy.mode_plans import Setting
    from fedquilt.privacy.plan import Plan


def plan(
    users: Annotated[int, typer.Option("--users", help="N, users in the population.")],
    cohort_size: Annotated[int, typer.Option("--cohort-size", help="Users drawn a round, on average.")],
    epsilon: Annotated[float | None, typer.Option("--epsilon", help="Target, or the budget with --noise.")] = None,
    rounds: Annotated[int | None, typer.Option("--rounds", help="Rounds of the run.")] = None,
    noise: Annotated[float | None, typer.Option("--noise", help="Noise multiplier: std / clipping norm.")] = None,
    delta: Annotated[float | None, typer.Option("--delta", help="Below 1/N; N^-1.1 unless given.")] = None,
    mode: Annotated[str, typer.Option("--mode", help="central, local, distributed or dp-ftrl.")] = "central",
    sampler: Annotated[
        str | None,
        typer.Option(
            "--sampler",
            help="What will be run: poisson (unless given), fixed-size or none; for the modes"
            " but central fixed-order (unless given) or none.",
        ),
    ] = None,
    dimension: Annotated[
        int | None, typer.Option("--dimension", min=1, help="distributed: parameters of the patch.")
    ] = None,
    dropout_margin: Annotated[
        float, typer.Option("--dropout-margin", min=0, max=0.99, help="distributed: share of a round who may vanish.")
    ] = 0.1,
    correlation: Annotated[str, typer.Option("--correlation", help="dp-ftrl: banded or tree.")] = "banded",
    accountant: Annotated[
        str | None, typer.Option("--accountant", help="central: rdp (unless given), pld, prv or gdp.")
    ] = None,
    prv: Annotated[bool, typer.Option("--prv", help="Also the PRV accountant in the table (loads torch).")] = False,
    plot: Annotated[Path | None, typer.Option("--plot", help="Write epsilon by rounds to this .png.")] = None,
    as_json: Json = False,
) -> None:
    """Give two of --epsilon, --rounds and --noise; the third is found."""
    from fedquilt.privacy.plan import assumptions, curve

    if mode != "central":
        _refuse_for_modes(mode, {"--accountant": accountant, "--prv": prv})
        setting = _setting(mode, users, cohort_size, delta, sampler, dimension, dropout_margin, correlation)
        return _plan_mode(setting, epsilon, rounds, noise, plot, as_json)
    sampler, accountant = sampler or "poisson", accountant or "rdp"
    if sampler == "fixed-order":
        raise PrivacyError("--sampler fixed-order is for modes local, distributed and dp-ftrl: give --mode")
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


def _plan_mode(
    setting: Setting, epsilon: float | None, rounds: int | None, noise: float | None, plot: Path | None, as_json: bool
) -> None:
    from cli.privacy_plan_modes import plan_mode

    plan_mode(setting, epsilon, rounds, noise, plot, as_json)


def _refuse_for_modes(mode: str, given: dict[str, object]) -> None:
    for option, value in given.items():
        if value:
            raise PrivacyError(f"{option} is for mode 'central': leave it out with --mode {mode}")


def _setting(
    mode: str,
    users: int,
    cohort_size: int,
    delta: float | None,
    sampler: str | None,
    dimension: int | None,
    dropout_margin: float,
    correlation: str,
) -> Setting:
    """PrivacyError for what such a run would refuse."""
    from fedquilt.privacy.mode_plans import CORRELATIONS, MODES, Setting
    from fedquilt.privacy.plan import delta_for, sampler_for

    if mode not in MODES:
        raise PrivacyError(f"--mode {mode!r}: known: central, {', '.join(MODES)}")
    if mode == "distributed" and dimension is None:
        raise PrivacyError("--mode distributed needs --dimension, parameters of the patch: the bound depends on it")
    if correlation not in CORRELATIONS:
        raise PrivacyError(f"--correlation {correlation!r}: known: {', '.join(CORRELATIONS)}")
    kind = sampler or "fixed-order"
    if mode != "local" and kind not in ("fixed-order", "none"):
        raise PrivacyError(
            f"--sampler {kind}: mode {mode!r} claims nothing of how users are drawn; take fixed-order or none"
        )
    drawn = sampler_for(kind, cohort_size, users)
    return Setting(
        mode, drawn, users, delta_for(delta, users), dimension or 0, dropout_margin=dropout_margin,
        correlation=CORRELATIONS[correlation],
    )  # fmt: skip


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
    from cli.plan_plot import plot

    title = f"noise multiplier {made.noise_multiplier:.3g}, {made.sampler.kind} sampling"
    plot(path, by_rounds, title, made.delta, made.accountant)
