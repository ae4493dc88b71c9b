"""The ledger: append-only, hash-chained, on disk before anything leaves. One per run, and one on each device.

One SQLite file. Entry n holds an event's canonical text, a time that never goes back, and
hash_n = SHA-256(hash_{n-1}, n, time, text). Heads can be signed (Ed25519). Whoever remembers a head (a device, a
checkpoint, an auditor) can tell later whether the ledger still contains it.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedquilt.errors import LedgerError, PrivacyError
from fedquilt.privacy.events import Event, from_json, ids_hash, to_json
from fedquilt.privacy.signing import public_key, signature_of

FILE = "privacy.sqlite"
FORMAT = "fedquilt-privacy-ledger-1"
_SCHEMA = """
CREATE TABLE about (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE entries (seq INTEGER PRIMARY KEY, time_ns INTEGER NOT NULL, body TEXT NOT NULL, hash TEXT NOT NULL);
CREATE TABLE cohorts (hash TEXT PRIMARY KEY, ids BLOB NOT NULL);
CREATE TABLE heads (seq INTEGER NOT NULL, hash TEXT NOT NULL, public_key TEXT NOT NULL, signature TEXT NOT NULL);
CREATE TRIGGER entries_stay BEFORE UPDATE ON entries BEGIN SELECT RAISE(ABORT, 'entries are never changed'); END;
CREATE TRIGGER entries_last BEFORE DELETE ON entries BEGIN SELECT RAISE(ABORT, 'entries are never deleted'); END;
"""


@dataclass(frozen=True)
class Head:
    """How far a ledger had come. ``str(head)`` is what events and records hold."""

    seq: int
    hash: str

    def __str__(self) -> str:
        return f"{self.seq}:{self.hash}"

    @classmethod
    def parse(cls, text: str) -> Head:
        seq, _, digest = text.partition(":")
        if not seq.isdecimal() or not digest:
            raise LedgerError(f"not a ledger head: {text[:80]!r}; expected 'number:hash'")
        return cls(int(seq), digest)


@dataclass(frozen=True)
class Entry:
    seq: int
    time_ns: int
    event: Event
    hash: str


def genesis(ledger_id: str) -> str:
    return hashlib.sha256(f"{FORMAT}\0{ledger_id}".encode()).hexdigest()


def entry_hash(before: str, seq: int, time_ns: int, body: str) -> str:
    return hashlib.sha256(f"{before}\0{seq}\0{time_ns}\0{body}".encode()).hexdigest()


def signed_text(ledger_id: str, head: Head) -> bytes:
    return f"{FORMAT}\0{ledger_id}\0{head}".encode()


class Ledger:
    """``Ledger.create`` or ``Ledger.open``; the latter checks the whole chain. One process writes at a time."""

    def __init__(self, path: Path, clock: Callable[[], int] = time.time_ns):
        self.path, self._clock = Path(path), clock
        self._releases: dict[str, Entry] = {}  # by digest
        with _told(self.path, "open"):
            self._db = sqlite3.connect(self.path, isolation_level=None, timeout=10, check_same_thread=False)
            self._db.execute("PRAGMA synchronous=EXTRA")  # commit returns after the journal's folder is synced too
            found = os.stat(self.path)
        self._file = found.st_dev, found.st_ino

    @classmethod
    def create(cls, path: str | Path, clock: Callable[[], int] = time.time_ns) -> Ledger:
        path = Path(path)
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        except FileExistsError:
            raise LedgerError(f"{path} exists: a ledger is never begun anew; open it, or start another run") from None
        except OSError as error:
            raise LedgerError(f"cannot create {path}: {error.strerror}") from None
        ledger = cls(path, clock)
        with _told(path, "create"), ledger._transaction():
            for statement in _SCHEMA.strip().split(";\n"):
                ledger._db.execute(statement)
            about = [("format", FORMAT), ("id", secrets.token_hex(16))]
            ledger._db.executemany("INSERT INTO about VALUES (?, ?)", about)
        _sync_folder(path.parent)
        return ledger

    @classmethod
    def open(cls, path: str | Path, clock: Callable[[], int] = time.time_ns) -> Ledger:
        """LedgerError where the chain does not hold."""
        path = Path(path)
        if not path.is_file():
            raise LedgerError(f"no ledger at {path}")
        ledger = cls(path, clock)
        for entry in ledger.entries():
            ledger._remember(entry)
        return ledger

    @property
    def id(self) -> str:
        with _told(self.path, "read"):
            about = dict(self._db.execute("SELECT name, value FROM about").fetchall())
        if about.get("format") != FORMAT:
            raise LedgerError(f"{self.path} is not a {FORMAT}")
        return str(about["id"])

    # --- reading ---

    def entries(self) -> Iterator[Entry]:
        """In order; LedgerError at the first entry that does not fit the chain."""
        before, expected = genesis(self.id), 1
        with _told(self.path, "read"):
            rows = self._db.execute("SELECT seq, time_ns, body, hash FROM entries ORDER BY seq").fetchall()
        for seq, time_ns, body, digest in rows:
            if seq != expected or digest != entry_hash(before, seq, time_ns, body):
                raise LedgerError(f"{self.path}: entry {expected} does not fit the chain: the ledger was changed")
            yield Entry(seq, time_ns, from_json(body), digest)
            before, expected = digest, expected + 1

    def events(self) -> list[Event]:
        return [entry.event for entry in self.entries()]

    def head(self) -> Head:
        with _told(self.path, "read"):
            row = self._db.execute("SELECT seq, hash FROM entries ORDER BY seq DESC LIMIT 1").fetchone()
        return Head(*row) if row else Head(0, genesis(self.id))

    def require_contains(self, head: Head) -> None:
        """For a resume, a device or an auditor that saw ``head``: LedgerError where the ledger no longer holds it."""
        found = genesis(self.id) if head.seq == 0 else None
        with _told(self.path, "read"):
            row = self._db.execute("SELECT hash FROM entries WHERE seq = ?", (head.seq,)).fetchone()
        if (row[0] if row else found) != head.hash:
            raise LedgerError(
                f"{self.path} ends at entry {self.head().seq} and does not contain entry {head.seq} as it was seen"
                " before: it was truncated, rewritten or replaced by an older copy. Bring back the ledger that contains"
                " it; without it nothing more is released"
            )

    # --- writing ---

    def append(self, event: Event, cohort_K: np.ndarray | None = None) -> Entry:
        """On disk when this returns. LedgerError where it cannot be, and then nothing may be released.

        ``cohort_K``: the cohort of a release, or the population of an opening, stored beside the event.
        An event whose ``release_digest`` this run and round hold already is the same release again: its entry is
        returned and nothing is added.
        """
        body = to_json(event)
        if cohort_K is not None and ids_hash(cohort_K) != _hash_in(event):
            raise LedgerError(f"round {event.round_}: the users are not the ones whose hash the event holds")
        if (known := self._same_release(event)) is not None:
            return known
        with _told(self.path, f"record {event.kind} of round {event.round_}"), self._transaction():
            head, last_ns = self.head(), self._last_time()
            now_ns = self._clock()
            if now_ns < last_ns:
                raise LedgerError(
                    f"the clock went back by {(last_ns - now_ns) / 1e9:.3f} s since entry {head.seq} of {self.path}:"
                    " set the clock, then resume; nothing was recorded or released"
                )
            entry = Entry(head.seq + 1, now_ns, event, entry_hash(head.hash, head.seq + 1, now_ns, body))
            self._db.execute("INSERT INTO entries VALUES (?, ?, ?, ?)", (entry.seq, now_ns, body, entry.hash))
            if cohort_K is not None:
                ids = np.sort(np.asarray(cohort_K)).astype("<i8").tobytes()
                self._db.execute("INSERT OR IGNORE INTO cohorts VALUES (?, ?)", (ids_hash(cohort_K), ids))
        self._remember(entry)
        return entry

    def sign(self, private_key: bytes) -> Head:
        """Sign the head with a raw 32-byte Ed25519 key, while nobody else writes; once, however often asked."""
        public = public_key(private_key)
        with _told(self.path, "sign"), self._transaction():
            head = self.head()
            signature = signature_of(signed_text(self.id, head), private_key)
            row = head.seq, head.hash, public, signature
            if not self._db.execute("SELECT 1 FROM heads WHERE (seq, hash, public_key, signature) = (?, ?, ?, ?)", row
                                    ).fetchone():  # fmt: skip
                self._db.execute("INSERT INTO heads VALUES (?, ?, ?, ?)", row)
        return head

    def lies_there(self) -> bool:
        """Whether the file that was opened is the one at its path: it may have been deleted or replaced since."""
        try:
            found = os.stat(self.path)
        except OSError:
            return False
        return (found.st_dev, found.st_ino) == self._file

    def close(self) -> None:
        self._db.close()

    def _last_time(self) -> int:
        row = self._db.execute("SELECT time_ns FROM entries ORDER BY seq DESC LIMIT 1").fetchone()
        return int(row[0]) if row else 0

    def _same_release(self, event: Event) -> Entry | None:
        entry = self._releases.get(getattr(event, "release_digest", ""))
        return entry if entry is not None and entry.event == event else None

    def _remember(self, entry: Entry) -> None:
        if digest := getattr(entry.event, "release_digest", ""):
            self._releases[digest] = entry

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise


@contextmanager
def _told(path: Path, what: str) -> Iterator[None]:
    """SQLite's and the disk's errors in our words."""
    try:
        yield
    except PrivacyError:
        raise
    except (sqlite3.Error, OSError) as error:
        raise LedgerError(
            f"{path}: cannot {what}: {error}. Nothing is released; make room or repair the disk, then resume"
        ) from error


def _hash_in(event: Event) -> str:
    return str(getattr(event, "cohort_hash", "") or getattr(event, "population_hash", ""))


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
