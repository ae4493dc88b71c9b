"""``fedquilt privacy statement``: what a run promised and kept, as text, JSON and a page for people."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.options import Json, print_json
from fedquilt.errors import PrivacyError


def statement(
    where: Annotated[Path, typer.Argument(metavar="RUN|LEDGER", help="A run's folder, or a ledger file.")],
    html: Annotated[Path | None, typer.Option("--html", help="Write a one-page HTML here.")] = None,
    key: Annotated[
        Path | None, typer.Option("--key", "--sign", metavar="FILE", help="Sign it with this key (`privacy keygen`).")
    ] = None,
    audit: Annotated[
        Path | None, typer.Option("--audit", help="JSON of an audit; unless given, the run's own.")
    ] = None,
    prv: Annotated[bool, typer.Option("--prv", help="Also the PRV accountant (loads torch).")] = False,
    as_json: Json = False,
) -> None:
    """Recompute everything from the ledger and say it. Exit code 1 where the ledger does not hold."""
    from fedquilt.privacy.audit.report import read_audit
    from fedquilt.privacy.signing import read_key
    from fedquilt.privacy.statement import in_words, sign
    from fedquilt.privacy.statement import statement as facts_of

    facts = facts_of(where, read_audit(audit) if audit else None, ("prv",) if prv else ())
    signature = sign(facts, read_key(key)) if key else None
    words = in_words(facts)
    if html is not None:
        _write(html, page(facts, words, signature))
    if as_json:
        print_json({**facts, "in_words": words, "signature": signature})
    else:
        for sentence in words:
            typer.echo(sentence)
        typer.echo("")
        for name, value in table_of(facts):
            typer.echo(f"{name:28} {value}")
        for deviation in facts["deviations"]:
            typer.echo(f"deviation: {deviation}")
        for finding in facts["findings"]:
            typer.secho(finding, fg=typer.colors.RED)
    if not facts["holds"]:
        raise typer.Exit(1)


def table_of(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(name, value) of the facts that fit a line."""
    epsilon, budget = facts["epsilon"], facts["budget_epsilon"]
    users = facts["epsilon_by_user_quantile"]
    released = "; ".join(f"{one['count']} × {one['what']}" for one in facts["releases"].values())
    rows = [
        ("epsilon, delta", f"{'none' if epsilon is None else f'{epsilon:.3f}'} at {facts['delta']:.3g}"),
        ("budget", "none was set" if budget is None else f"epsilon {budget:g}"),
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
    if users:
        told = ", ".join(f"{float(q):.0%} of users: {spent:.2f}" for q, spent in users.items() if float(q) > 0)
        rows.insert(2, ("by rounds taken part in", f"{told} (epsilon without credit for secret cohorts)"))
    return rows


def page(facts: Mapping[str, Any], words: list[str], signature: Mapping[str, str] | None) -> str:
    from jinja2 import Environment, FileSystemLoader
    from markupsafe import Markup

    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True)
    template = environment.get_template("privacy_statement.html.j2")
    chart = Markup(_chart(facts["burn_down"], facts["budget_epsilon"])) if len(facts["burn_down"]) > 1 else ""
    return template.render(f=facts, words=words, table=table_of(facts), signature=signature, chart=chart)


def _chart(rows: list[tuple[int, float]], budget: float | None) -> str:
    """Inline SVG of epsilon by round; numbers only, so nothing to escape."""
    width, height, left, bottom = 640, 160, 40, 20
    finite = [(round_, epsilon) for round_, epsilon in rows if epsilon < float("inf")]
    top = max([epsilon for _, epsilon in finite] + ([budget] if budget else []), default=1.0) * 1.05
    last = max((round_ for round_, _ in finite), default=1)

    def place(round_: float, epsilon: float) -> tuple[float, float]:
        return left + (width - left) * round_ / last, (height - bottom) * (1 - epsilon / top)

    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*row) for row in finite))
    line = f'<polyline fill="none" stroke="#2457a6" stroke-width="2" points="{points}"/>'
    if budget:
        y = place(0, budget)[1]
        line += f'<line x1="{left}" x2="{width}" y1="{y:.1f}" y2="{y:.1f}" stroke="#b00020" stroke-dasharray="4 3"/>'
        line += f'<text x="{left + 4}" y="{y + 12:.1f}" font-size="11" fill="#b00020">budget {budget:g}</text>'
    line += (
        f'<text x="0" y="12" font-size="11">{top:.2g}</text><text x="0" y="{height - bottom}" font-size="11">0</text>'
    )
    line += f'<text x="{width - 70}" y="{height - 4}" font-size="11">round {last}</text>'
    return f'<svg viewBox="0 0 {width} {height}" width="100%" role="img" aria-label="epsilon by round">{line}</svg>'


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text)
    except OSError as error:
        raise PrivacyError(f"cannot write {path}: {error.strerror}") from None
