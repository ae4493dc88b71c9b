"""Users' personal patches between rounds and runs: one SQLite file per node.

Rows are kept by (client, round). A round that is run again after a crash reads what it read the first time, because
rows of later rounds are not looked at and the last row that a resume can go back to is not thrown away.

A write is one transaction in write-ahead mode: a killed process leaves all of it or none. It is not synced to disk each
time (``synchronous = NORMAL``): a power cut may cost the latest rounds' rows, never the file.
"""

from __future__ import annotations

import json
import sqlite3
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from logging import WARNING
from pathlib import Path

import numpy as np
from flwr.supercore import log

from fedquilt.errors import RunError

MAX_OPEN = 64  # connections of one process; a node beyond that is opened again when it is next asked
LOG_BYTES = 16 << 20  # the write-ahead log is folded into the file at this size, and cut back to it
_CHUNK = 2048  # rows a read joins at a time: bounds memory

_open: OrderedDict[Path, sqlite3.Connection] = OrderedDict()


class PersonalStore:
    """``personal_size`` float32 numbers per user. ``read`` and ``write`` take many users at once."""

    def __init__(self, folder: str | Path, partition: int, spec_hash: str, personal_size: int):
        self.path = Path(folder) / f"personal-{partition:05d}-{spec_hash}-{personal_size}.sqlite"
        self.personal_size = personal_size

    def read(self, client_ids_K: np.ndarray, before_round: int) -> np.ndarray:
        """float32 [K, R]: each user's newest row of a round < ``before_round``; zeros for a user without one."""
        rows_KR = np.zeros((len(client_ids_K), self.personal_size), np.float32)
        if self.personal_size == 0 or not self.path.exists():
            return rows_KR
        with self._connection() as connection:
            for start in range(0, len(client_ids_K), _CHUNK):
                self._read_chunk(connection, client_ids_K[start : start + _CHUNK], before_round, rows_KR[start:])
        return rows_KR

    def write(self, client_ids_K: np.ndarray, round_: int, rows_KR: np.ndarray, settled_round: int) -> None:
        """Store these users' rows of ``round_``; drop those that no resume at or after ``settled_round`` would read.

        A row that is not finite is not stored: its user keeps the patch of an earlier round.
        """
        if self.personal_size == 0 or not len(client_ids_K):
            return
        rows_KR = np.ascontiguousarray(rows_KR, np.float32)
        if rows_KR.shape != (len(client_ids_K), self.personal_size):
            raise RunError(
                f"{self.path.name}: rows have shape {rows_KR.shape}, expected {(len(client_ids_K), self.personal_size)}"
            )
        sound_K = np.isfinite(rows_KR).all(axis=1)
        if not sound_K.all():
            broken = client_ids_K[~sound_K]
            told = f"patches of {len(broken)} users are not finite and were not stored, the first of client {broken[0]}"
            log(WARNING, "%s, round %d: %s", self.path.name, round_, told)
        ids, rows_KR = client_ids_K[sound_K].tolist(), rows_KR[sound_K]
        with self._connection() as connection, connection:
            connection.executemany(
                "INSERT OR REPLACE INTO personal VALUES (?, ?, ?)",
                zip(ids, [round_] * len(ids), (row.data for row in rows_KR), strict=True),
            )
            _drop_superseded(connection, ids, settled_round)

    def close(self) -> None:
        connection = _open.pop(self.path, None)
        if connection is not None:
            connection.close()

    def _read_chunk(self, connection: sqlite3.Connection, ids_K: np.ndarray, before: int, out_KR: np.ndarray) -> None:
        found = connection.execute(
            "SELECT client_id, max(round), row FROM personal"  # SQLite takes `row` from the row that holds the maximum
            " WHERE client_id IN (SELECT value FROM json_each(?)) AND round < ? GROUP BY client_id",
            (json.dumps(ids_K.tolist()), before),
        ).fetchall()
        if not found:
            return
        stored_ids, _, blobs = zip(*found, strict=True)
        stored = np.frombuffer(b"".join(blobs), np.float32)
        if stored.size != len(blobs) * self.personal_size:
            raise RunError(f"{self.path}: rows are not {self.personal_size} numbers long; the file is damaged")
        order = np.argsort(ids_K, kind="stable")
        out_KR[order[np.searchsorted(ids_K, stored_ids, sorter=order)]] = stored.reshape(-1, self.personal_size)

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        """This file's connection, opened if need be; an error of SQLite names the file."""
        try:
            connection = _open.get(self.path)
            if connection is None:
                while len(_open) >= MAX_OPEN:
                    _open.popitem(last=False)[1].close()
                connection = _open[self.path] = _connect(self.path)
            _open.move_to_end(self.path)
            yield connection
        except sqlite3.DatabaseError as error:
            self.close()
            raise RunError(f"personal patches in {self.path}: {error}") from None


def _connect(path: Path) -> sqlite3.Connection:
    path.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(path, timeout=60, check_same_thread=False)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("PRAGMA secure_delete = FAST")  # wiping every freed page doubles the time of a write
    connection.execute(f"PRAGMA wal_autocheckpoint = {LOG_BYTES // 4096}")  # in pages
    connection.execute(f"PRAGMA journal_size_limit = {LOG_BYTES}")
    connection.execute(
        "CREATE TABLE IF NOT EXISTS personal (client_id INTEGER, round INTEGER, row BLOB, UNIQUE (client_id, round))"
    )
    return connection


def _drop_superseded(connection: sqlite3.Connection, ids: list[int], settled_round: int) -> None:
    """A resume at ``settled_round`` or later reads a user's newest row up to it; what is older than that is dead."""
    connection.execute(
        "DELETE FROM personal WHERE client_id IN (SELECT value FROM json_each(?1)) AND round < ("
        " SELECT max(newer.round) FROM personal AS newer"
        " WHERE newer.client_id = personal.client_id AND newer.round <= ?2)",
        (json.dumps(ids), settled_round),
    )
