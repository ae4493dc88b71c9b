"""``fedquilt privacy statement``: what a run promised and kept, as text, JSON and a page for people; and its check."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.options import Json, print_json
from fedquilt.errors import PrivacyError


def statement(
    where: Annotated[
        Path | None, typer.Argument(metavar="RUN|LEDGER", help="A run's folder, or a ledger file.", show_default=False)
    ] = None,
    html: Annotated[Path | None, typer.Option("--html", help="Write a one-page HTML here.")] = None,
    key: Annotated[
        Path | None,
        typer.Option("--key", "--sign", metavar="FILE", help="Sign it with this private key (`privacy keygen`)."),
    ] = None,
    audit: Annotated[
        Path | None, typer.Option("--audit", help="JSON of an audit; unless given, the run's own.")
    ] = None,
    prv: Annotated[bool, typer.Option("--prv", help="Also the PRV accountant (loads torch).")] = False,
    check: Annotated[
        Path | None,
        typer.Option(
            "--check",
            metavar="FILE",
            help="Check a signed statement, page or JSON, in place of making one: its signature by --public-key, and"
            " that it shows what the signed facts give.",
        ),
    ] = None,
    public_key: Annotated[
        str | None, typer.Option("--public-key", help="With --check: hex Ed25519 key that must have signed.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Recompute everything from the ledger and say it. Exit code 1 where the ledger, or --check, does not hold."""
    if check is not None:
        if where or html or key or audit or prv:
            raise PrivacyError("--check reads a statement and makes none: give it with --public-key alone")
        return _check(check, public_key, as_json)
    if public_key is not None:
        raise PrivacyError("--public-key goes with --check")
    if where is None:
        raise PrivacyError("name a run's folder or a ledger file, or a statement with --check")
    _make(where, html, key, audit, prv, as_json)


def _make(where: Path, html: Path | None, key: Path | None, audit: Path | None, prv: bool, as_json: bool) -> None:
    from cli.statement_page import lines_of, page
    from fedquilt.privacy.audit.report import read_audit
    from fedquilt.privacy.signing import read_key
    from fedquilt.privacy.statement import in_words, sign
    from fedquilt.privacy.statement import statement as facts_of

    facts = facts_of(where, read_audit(audit) if audit else None, ("prv",) if prv else ())
    signature = sign(facts, read_key(key)) if key else None
    if html is not None:
        _write(html, page(facts, signature))
    if as_json:
        print_json({**facts, "in_words": in_words(facts), "signature": signature})
    else:
        for line in lines_of(facts, in_words(facts)):
            typer.echo(line)
        for finding in facts["findings"]:
            typer.secho(finding, fg=typer.colors.RED)
    if not facts["holds"]:
        raise typer.Exit(1)


def _check(path: Path, public_key: str | None, as_json: bool) -> None:
    from cli.statement_check import check

    if public_key is None:
        raise PrivacyError("--check needs --public-key: a signature by anybody proves nothing")
    try:
        text = path.read_bytes().decode()
    except (OSError, ValueError) as error:
        raise PrivacyError(f"cannot read the statement {path}: {error}") from None
    wrong = check(text, public_key)
    if as_json:
        print_json({"holds": not wrong, "wrong": wrong})
    else:
        for sentence in wrong:
            typer.secho(sentence, fg=typer.colors.RED)
        typer.echo("DOES NOT HOLD" if wrong else "holds: signed by this key, and it shows what was signed")
    if wrong:
        raise typer.Exit(1)


def _write(path: Path, text: str) -> None:
    try:
        path.write_bytes(text.encode())
    except OSError as error:
        raise PrivacyError(f"cannot write {path}: {error.strerror}") from None
