"""``fedquilt privacy keygen`` and ``sign``: a key of one's own, and the last head of a ledger signed with it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.options import Json, print_json


def keygen(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="Where the private key goes; nothing may be there.")],
    as_json: Json = False,
) -> None:
    """Make an Ed25519 key for `sign` and `statement`. Its public key is printed: give that to whoever verifies."""
    from fedquilt.privacy.signing import new_key

    public = new_key(path)
    if as_json:
        print_json({"private_key": str(path), "public_key": public})
    else:
        typer.echo(f"private key in {path}: keep it away from the run's folder")
        typer.echo(f"public key {public}")


def sign(
    where: Annotated[Path, typer.Argument(metavar="RUN|LEDGER", help="A run's folder, or a ledger file.")],
    key: Annotated[Path, typer.Option("--key", metavar="FILE", help="A private key (`privacy keygen`).")],
    as_json: Json = False,
) -> None:
    """Sign the last head of a ledger whose chain holds, and so all entries up to it. Later ones need a new signature.

    It says that the ledger ended there when it was signed, not that its claims hold: for these `verify` it first.
    """
    from fedquilt.privacy.book import ledger_path
    from fedquilt.privacy.ledger import Ledger
    from fedquilt.privacy.signing import public_key, read_key

    private = read_key(key)
    ledger = Ledger.open(ledger_path(where))
    try:
        head = ledger.sign(private)
    finally:
        ledger.close()
    if as_json:
        print_json({"head": str(head), "public_key": public_key(private)})
    else:
        typer.echo(f"signed head {head}")
        typer.echo(f"check it: fedquilt privacy verify {where} --public-key {public_key(private)}")
