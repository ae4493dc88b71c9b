"""``fedquilt privacy plan --mode ...``: noise of devices, or correlated over rounds, beside the other modes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import typer

from cli.options import new_table, number, print_json, print_table
from fedquilt.errors import PrivacyError
from fedquilt.privacy.mode_plans import MODES, ModePlan, Setting, curve, noise_for, rounds_for
from fedquilt.privacy.plan import plan_noise, sampler_for

NOISE_OF = {
    "local": "each row, by its device",
    "distributed": "the sum, in shares by the devices",
    "dp-ftrl": "the sum, by the cloud, correlated over rounds",
    "central": "the sum, by the cloud, Poisson cohorts",
}


def plan_mode(
    setting: Setting,
    epsilon: float | None,
    rounds: int | None,
    noise: float | None,
    plot: Path | None = None,
    as_json: bool = False,
) -> None:
    """Two of epsilon, rounds and noise give the third."""
    made = solved(setting, epsilon, rounds, noise)
    spent, by_rounds = made.epsilon, curve(made)
    if plot is not None:
        _plot(plot, by_rounds, made)
    rows = list(beside(made, epsilon or spent))
    facts: dict[str, Any] = {
        "mode": setting.mode,
        "users": setting.users,
        "cohort_size": setting.shares,
        "sampler": setting.sampler.kind,
        "rounds": made.rounds,
        "noise_multiplier": made.noise_multiplier,
        "epsilon": spent,
        "delta": setting.delta,
        "noise_on_the_mean": made.on_the_mean,
    }
    if as_json:
        print_json({**facts, "modes": rows, "by_rounds": by_rounds})
        return
    typer.echo(
        f"{setting.mode}: {made.rounds:,} rounds at noise multiplier {made.noise_multiplier:.4g}: epsilon {spent:.3f}"
        f" at delta {setting.delta:.3g} ({setting.sampler.kind}, about {setting.shares:,} of {setting.users:,} users a"
        " round)"
    )
    table = new_table("The same budget under every mode", "mode", "noise multiplier", "noise on the mean, in clips")
    table.add_column("this plan", justify="center")
    table.add_column("noise on", overflow="fold")
    for row in rows:
        mark = "<--" if row["executed"] else ""
        noisy = f"{row['noise_on_the_mean']:.3g}"
        table.add_row(row["mode"], f"{row['noise_multiplier']:.4g}", noisy, mark, NOISE_OF[row["mode"]])
    print_table(table)
    whole = "A plan of so many rounds, charged before its first"
    burn = new_table(whole if setting.mode == "dp-ftrl" else "Spent by rounds", "rounds", "epsilon")
    for count, charged in by_rounds:
        burn.add_row(number(count), f"{charged:.3f}")
    print_table(burn)
    typer.echo(f"Noise on the mean: std of a coordinate of the mean over all {number(made.rounds)} rounds.")


def _plot(path: Path, by_rounds: list[tuple[int, float]], made: ModePlan) -> None:
    from cli.plan_plot import plot

    setting = made.setting
    whole = ", plans charged before their first round" if setting.mode == "dp-ftrl" else ""
    title = f"{setting.mode}{whole}, noise multiplier {made.noise_multiplier:.3g}, {setting.sampler.kind}"
    plot(path, by_rounds, title, setting.delta)


def solved(setting: Setting, epsilon: float | None, rounds: int | None, noise: float | None) -> ModePlan:
    if sum(value is not None for value in (epsilon, rounds, noise)) != 2:
        raise PrivacyError("give exactly two of --epsilon, --rounds and --noise; the third is found")
    if noise is None and epsilon is not None and rounds is not None:
        return ModePlan(setting, noise_for(setting, epsilon, rounds), rounds)
    if rounds is None and epsilon is not None and noise is not None:
        return ModePlan(setting, noise, rounds_for(setting, epsilon, noise))
    assert noise is not None  # two of three were given
    assert rounds is not None
    if noise <= 0 or rounds < 1:
        raise PrivacyError(f"a plan needs a positive noise multiplier and rounds; got {noise:g} and {rounds}")
    return ModePlan(setting, noise, rounds)


def beside(made: ModePlan, epsilon: float) -> Iterator[dict[str, Any]]:
    """The noise that each mode needs for this epsilon over these rounds; the plan's own row is what it has.

    Distributed noise depends on the dimension, and is left out where that is not known.
    """
    setting, rounds = made.setting, made.rounds
    for mode in MODES:
        own = mode == setting.mode
        if mode == "distributed" and not setting.dimension:
            continue
        other = made if own else _planned(replace(setting, mode=mode), epsilon, rounds)
        yield _row(mode, other.noise_multiplier, other.on_the_mean, own)
    poisson = sampler_for("poisson", setting.shares, setting.users)
    central = plan_noise(epsilon, poisson, rounds, setting.users, setting.delta).noise_multiplier
    yield _row("central", central, central / (rounds**0.5 * setting.shares), False)


def _planned(setting: Setting, epsilon: float, rounds: int) -> ModePlan:
    return ModePlan(setting, noise_for(setting, epsilon, rounds), rounds)


def _row(mode: str, noise: float, on_the_mean: float, executed: bool) -> dict[str, Any]:
    return {"mode": mode, "noise_multiplier": noise, "noise_on_the_mean": on_the_mean, "executed": executed}
