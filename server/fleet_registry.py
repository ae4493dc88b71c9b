"""Which devices may take part: one-time tokens and the certificates that used them. Holds no secret, only hashes."""

from __future__ import annotations

import secrets
import sqlite3
from pathlib import Path
from typing import Protocol

from fedquilt.errors import KeysError
from fedquilt.rpc.keys import REGISTRY, TOKEN, token_hash, write_private


class Registry(Protocol):
    """The server's lasting knowledge of devices; SQLite here, other stores may follow."""

    def partition_of(self, fingerprint: str) -> int | None:
        """The number of an enrolled device; None for a stranger."""

    def enrol(self, fingerprint: str, token: str) -> int | None:
        """Uses the token up. -> the device's number, None for a token that is unknown or used."""


class SqliteRegistry:
    """``KEYS/registry.sqlite``. A device's number is its token's: that of the order in which tokens were made."""

    def __init__(self, keys: Path):
        self._path = keys / REGISTRY
        self._connection = sqlite3.connect(self._path, timeout=30, check_same_thread=False, isolation_level=None)
        self._connection.execute("PRAGMA synchronous = FULL")
        self._connection.execute(
            "CREATE TABLE IF NOT EXISTS devices (partition INTEGER PRIMARY KEY, token TEXT UNIQUE NOT NULL,"
            " fingerprint TEXT UNIQUE)"
        )

    def add_token(self) -> str:
        token = secrets.token_urlsafe(32)
        self._connection.execute(
            "INSERT INTO devices (partition, token) SELECT coalesce(max(partition) + 1, 0), ? FROM devices",
            (token_hash(token),),
        )
        return token

    def partition_of(self, fingerprint: str) -> int | None:
        row = self._connection.execute("SELECT partition FROM devices WHERE fingerprint = ?", (fingerprint,)).fetchone()
        return None if row is None else int(row[0])

    def enrol(self, fingerprint: str, token: str) -> int | None:
        known = self.partition_of(fingerprint)
        if known is not None:
            return known
        self._connection.execute(
            "UPDATE devices SET fingerprint = ? WHERE token = ? AND fingerprint IS NULL",
            (fingerprint, token_hash(token)),
        )
        return self.partition_of(fingerprint)

    def close(self) -> None:
        self._connection.close()


def give_token(keys: Path, device_folder: Path) -> None:
    """A new token, in the device's folder and nowhere else."""
    if not keys.is_dir():
        raise KeysError(f"no keys at {keys}: make them with `fedquilt keys init {keys}`")
    registry = SqliteRegistry(keys)
    write_private(device_folder / TOKEN, registry.add_token().encode())
    registry.close()
