"""``fedquilt privacy verify``: epsilon from the ledger's events alone, and whether the ledger can be believed."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.options import Json, new_table, print_json, print_table

if TYPE_CHECKING:
    from fedquilt.privacy.randomness import Source


def verify(
    where: Annotated[Path, typer.Argument(metavar="RUN|LEDGER", help="A run's folder, or a ledger file.")],
    device: Annotated[
        list[Path] | None,
        typer.Option("--device", help="A device's ledger, or a run's for a population's, whose memory counts."),
    ] = None,
    head: Annotated[list[str] | None, typer.Option("--head", help="NUMBER:HASH that someone remembers.")] = None,
    public_key: Annotated[
        str | None, typer.Option("--public-key", help="Hex Ed25519 key that must have signed the last head.")
    ] = None,
    sampling_seed: Annotated[
        int | None, typer.Option("--sampling-seed", help="Draw the cohorts of a simulation again from its seed.")
    ] = None,
    sampling_key: Annotated[
        Path | None,
        typer.Option(
            "--sampling-key",
            metavar="FILE",
            help="Draw the cohorts of a run with secrets again from its key of cohorts (privacy.cohorts.key), which"
            " tells nothing of its noise.",
        ),
    ] = None,
    deployed: Annotated[bool, typer.Option("--deployed", help="Seeded noise is a finding.")] = False,
    delta: Annotated[list[float] | None, typer.Option("--delta", help="Further deltas.")] = None,
    prv: Annotated[bool, typer.Option("--prv", help="Also the PRV accountant (loads torch).")] = False,
    as_json: Json = False,
) -> None:
    """Check chain, order, claims, cohorts and releases; exit code 1 where anything does not hold."""
    from fedquilt.privacy.verify import TOLD
    from fedquilt.privacy.verify import verify as verify_ledger

    verdict = verify_ledger(
        where,
        devices=device or (),
        heads=head or (),
        public_key=public_key,
        sampling_source=_source(sampling_seed, sampling_key),
        deployed=deployed,
        deltas=delta or (),
        accountants=(*TOLD, "prv") if prv else TOLD,
    )
    if as_json:
        print_json({**asdict(verdict), "holds": verdict.holds})
    else:
        table = new_table(
            f"{where}: {verdict.num_releases} releases in {verdict.num_events} events", "accountant", "delta"
        )
        table.add_column("epsilon", justify="right", overflow="fold")
        for name, by_delta in verdict.epsilons.items():
            if isinstance(by_delta, str):
                table.add_row(name, "", by_delta)
                continue
            for at, epsilon in by_delta.items():
                table.add_row(name, f"{at:.3g}", f"{epsilon:.4f}")
        print_table(table)
        if verdict.most_participations is not None:
            typer.echo(f"most rounds of a single user: {verdict.most_participations}")
        for at, epsilon in (verdict.worst_user or {}).items():
            typer.echo(f"most spent by a single user of this device: epsilon {epsilon:.4f} at delta {at:.3g}")
        for finding in verdict.findings:
            typer.secho(f"{finding.kind}: {finding.text}", fg=typer.colors.RED)
        typer.echo(f"head {verdict.head}")
        typer.echo("holds" if verdict.holds else f"DOES NOT HOLD: {len(verdict.findings)} findings")
    if not verdict.holds:
        raise typer.Exit(1)


def _source(seed: int | None, key: Path | None) -> Source | None:
    from fedquilt.errors import ConfigError
    from fedquilt.privacy.keys import shown_cohorts
    from fedquilt.privacy.randomness import Simulated

    if seed is not None and key is not None:
        raise ConfigError("--sampling-seed is for simulations and --sampling-key for runs with secrets: give one")
    if key is not None:
        return shown_cohorts(key)
    return None if seed is None else Simulated(seed)
