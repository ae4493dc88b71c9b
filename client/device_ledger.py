"""The device's own privacy ledger: what its users sent, to whom, and where each of them stops. One file a node.

It is written before a reply leaves, it knows of all runs that the device took part in, and it remembers how far each
run's ledger had come: a cloud that shows an older copy afterwards is refused.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fedquilt.errors import LedgerError, PrivacyError
from fedquilt.privacy.accountants import ACCOUNTANTS, Atom, atom_of
from fedquilt.privacy.book import read_book
from fedquilt.privacy.device_events import DeviceLimit, NormedDeviceRound, digests_of, of_users, release_key
from fedquilt.privacy.distributed import DistributedNoise
from fedquilt.privacy.event_base import Event
from fedquilt.privacy.events import Deviation, DeviceRound, ids_hash
from fedquilt.privacy.gaussian import require_epsilon
from fedquilt.privacy.ledger import Head, Ledger
from fedquilt.privacy.terms import Terms

DELTA = 1e-6  # at which a limit is counted, unless the owner names another
MAX_OPEN = 64  # ledgers of one process; a node beyond that is opened, and its chain checked, when it is next asked


@dataclass
class _Account:
    """What an open ledger holds, by user and by run."""

    ledger: Ledger
    head: Head
    file: tuple[int, int] = (0, 0)  # device and inode: an open database outlives its file's removal or replacement
    spent: dict[Atom, Counter[int]] = field(default_factory=dict)
    rounds: dict[tuple[str, int, str], set[int]] = field(default_factory=dict)
    sent: dict[tuple[Hashable, ...], set[str]] = field(default_factory=dict)  # digests of users' bytes, by release
    heads: dict[str, Head] = field(default_factory=dict)
    neighbours: str = ""
    by_norms: bool = False  # it holds rounds charged by users' norms
    discrete: bool = False  # it holds rounds of noise that is not Gaussian
    remarks: set[Deviation] = field(default_factory=set)
    limit: tuple[float, float] | None = None  # (epsilon, delta) that was last said

    def append(self, event: Event, ids_K: np.ndarray | None = None) -> None:
        entry = self.ledger.append(event, ids_K)
        self.head = Head(entry.seq, entry.hash)

    def add(self, event: DeviceRound, ids_K: np.ndarray) -> None:
        atom, users = atom_of(event), ids_K.tolist()
        assert atom is not None  # a round of a device always costs
        self.spent.setdefault(atom, Counter()).update(users)
        self.rounds.setdefault((event.run, event.round_, event.mechanism), set()).update(users)
        self.sent.setdefault(release_key(event), set()).update(digests_of(event, ids_K))
        self.neighbours = event.neighbours
        self.by_norms |= isinstance(event, NormedDeviceRound)
        self.discrete |= event.noise != "gaussian"
        if event.run_head:
            self.heads[event.run] = Head.parse(event.run_head)


_open: OrderedDict[Path, _Account] = OrderedDict()
_seen: dict[Path, Head] = {}  # how far ledgers had come that this process has opened, closed ones too


@dataclass(frozen=True)
class DeviceLedger:
    """``limit``: epsilon that no user may exceed over everything that this device sends; 0: none.

    ``delta``: at which the limit is counted, whatever delta the cloud names: at one near 1 any noise costs nothing.
    ``most_delta``: what promises less is refused.
    """

    path: Path
    limit: float = 0.0
    delta: float = DELTA
    most_delta: float = 1.0

    def __post_init__(self) -> None:
        if self.limit:
            require_epsilon(self.limit)
        for delta in (self.delta, self.most_delta):
            if not 0 < delta <= 1:
                raise PrivacyError(f"a device's delta lies in (0, 1); got {delta:g}: see fedquilt device --delta")

    def admit(self, event: DeviceRound, ids_K: np.ndarray) -> np.ndarray:
        """Before the work: mask [K] of users with room for the round. LedgerError where the cloud's ledger went back.

        Who was charged for the round already may send the same bytes again, which ``room`` knows after the work.
        """
        account = self._account()
        self._require_head(account, event)
        self._require_one_filter(account, event)
        if event.delta > self.most_delta:
            raise PrivacyError(
                f"run {event.run} promises its epsilon at delta {event.delta:g}, the owner of this device wants at most"
                f" {self.most_delta:g} (--delta): nothing is sent"
            )
        if account.neighbours not in ("", event.neighbours):
            raise PrivacyError(
                f"{self.path} accounts for {account.neighbours} neighbours, the round for {event.neighbours}: one limit"
                " holds for one relation; use another device folder for the other mechanism"
            )
        already = account.rounds.get((event.run, event.round_, event.mechanism), set())
        more_K = np.array([user not in already for user in ids_K.tolist()], np.int64)
        return self._within(account, event, ids_K, more_K)

    def room(self, event: DeviceRound, ids_K: np.ndarray) -> np.ndarray:
        """After the work: mask [K] of the users with room for what they would send, or charged for these bytes already.

        Each user's place depends on that user's own account and bytes alone.
        """
        account = self._account()
        return self._within(account, event, ids_K, _more(account, event, ids_K))

    def record(self, events: Sequence[tuple[DeviceRound, np.ndarray]]) -> None:
        """(event, its users [K]) of one reply, no user in two: on disk when this returns. PrivacyError: send nothing.

        A user is charged once for the same bytes of the same round. Nothing is recorded unless there is room for all,
        which ``room`` tells before.
        """
        account = self._account()
        more = [(event, ids_K, _more(account, event, ids_K) > 0) for event, ids_K in events]
        new = [of_users(event, ids_K, more_K) for event, ids_K, more_K in more if more_K.any()]
        for event, ids_K in new:
            if not self._within(account, event, ids_K, np.ones(len(ids_K), np.int64)).all():
                raise PrivacyError(
                    f"round {event.round_}: users without room under the device's limit of epsilon {self.limit:g} are"
                    " among those who would send: nothing is sent"
                )
        if new:
            self._say_limit(account, new[0][0])
        for event, ids_K in new:
            account.append(event, ids_K)
            account.add(event, ids_K)

    def remark(self, run: str, round_: int, text: str) -> None:
        """Something that an auditor shall read and that no epsilon covers; on disk when this returns, and said once."""
        account, event = self._account(), Deviation(run, round_, text)
        if event in account.remarks:
            return
        account.append(event)
        account.remarks.add(event)

    def _say_limit(self, account: _Account, event: DeviceRound) -> None:
        """On the ledger, whenever it is another one than was said there: ``verify`` holds users' accounts to it."""
        said = (self.limit, self.delta) if self.limit else None
        if said != account.limit:
            account.append(DeviceLimit(event.run, event.round_, self.limit, self.delta))
            account.limit = said

    def _within(self, account: _Account, event: DeviceRound, ids_K: np.ndarray, more_K: np.ndarray) -> np.ndarray:
        if not self.limit:
            return np.ones(len(ids_K), bool)
        atom = atom_of(event)
        assert atom is not None  # a round of a device always costs
        atoms = sorted({*account.spent, atom})
        counts_KA = np.array([[account.spent.get(a, Counter())[user] for a in atoms] for user in ids_K.tolist()])
        counts_KA = counts_KA.reshape(len(ids_K), len(atoms))
        counts_KA[:, atoms.index(atom)] += more_K
        patterns, place_K = np.unique(counts_KA, axis=0, return_inverse=True)
        delta = min(self.delta, event.delta)
        fits = [_epsilon(dict(zip(atoms, row.tolist(), strict=True)), delta) <= self.limit for row in patterns]
        return np.array(fits, bool)[place_K.reshape(-1)]

    def _require_one_filter(self, account: _Account, event: DeviceRound) -> None:
        """Costs that depend on users' data are proven to add up as exact Gaussians, not by RDP at its best order."""
        by_norms, discrete = isinstance(event, NormedDeviceRound), event.noise != "gaussian"
        if (by_norms and account.discrete) or (discrete and account.by_norms):
            held, asked = "noise that is not Gaussian", "charges by norms"
            raise PrivacyError(
                f"{self.path} holds rounds of {held if by_norms else asked}, the order is for"
                f" {asked if by_norms else held}: that one limit holds for both is not proven; use another device"
                " folder for the other. Nothing is sent"
            )

    def _require_head(self, account: _Account, event: DeviceRound) -> None:
        if (
            not event.run_head
        ):  # an evaluation: the noise is this device's own, and the cloud's ledger has no part in it
            return
        last, now = account.heads.get(event.run), Head.parse(event.run_head)
        if last is not None and (now.seq < last.seq or (now.seq == last.seq and now.hash != last.hash)):
            raise LedgerError(
                f"the cloud's ledger of run {event.run} stands at entry {now.seq}; this device has seen entry"
                f" {last.seq} of it: it was cut, rewritten or replaced by an older copy. Nothing is sent"
            )

    def _account(self) -> _Account:
        """From memory, unless another process wrote to the file since. LedgerError where it vanished or went back."""
        account = _open.get(self.path)
        if self.path in _seen and not self.path.exists():
            raise LedgerError(
                f"the device's ledger {self.path} has vanished, and with it what its users have spent: bring it back;"
                " until then nothing is sent"
            )
        if account is None or _file(self.path) != account.file or account.ledger.head() != account.head:
            account = self._opened_again(account)
        _seen[self.path] = account.head
        _open.move_to_end(self.path)
        while len(_open) > MAX_OPEN:
            closed, other = _open.popitem(last=False)
            _seen[closed] = other.head
            other.ledger.close()
        return account

    def _opened_again(self, before: _Account | None) -> _Account:
        head = before.head if before is not None else _seen.get(self.path)
        account = _read(self.path)
        if head is not None:
            account.ledger.require_contains(head)
        if before is not None:
            before.ledger.close()
        _open[self.path] = account
        return account


def device_event(terms: Terms, round_: int, ids_K: np.ndarray, dimension: int, digest: str = "") -> DeviceRound:
    """What a round under these terms costs each of the users."""
    facts: dict[str, Any] = {}
    if terms.mode == "distributed":
        noise = distributed_noise(terms, dimension)
        facts = {"noise": noise.noise, "variance": noise.variance, "l2": noise.l2, "l1": noise.l1}
        facts |= {"dimension": dimension, "shares": noise.fewest_shares}
    return DeviceRound(
        run=terms.run,
        round_=round_,
        mechanism=terms.mode,
        noise_multiplier=terms.noise_multiplier,
        clipping_norm=terms.clipping_norm,
        cohort_size=len(ids_K),
        cohort_hash=ids_hash(ids_K),
        delta=terms.delta,
        neighbours="replace-one" if terms.mode == "local" else "add-or-remove",
        randomness=terms.randomness,
        release_digest=digest,
        run_head=terms.run_head,
        **facts,
    )


def distributed_noise(terms: Terms, dimension: int) -> DistributedNoise:
    if terms.noise == "gaussian":
        raise PrivacyError("distributed terms name no discrete noise")
    z, norm = terms.noise_multiplier, terms.clipping_norm
    return DistributedNoise(terms.noise, z, norm, terms.shares, dimension, terms.dropout_margin)


def _more(account: _Account, event: DeviceRound, ids_K: np.ndarray) -> np.ndarray:
    """Times [K] that users would be charged: 0 for whom exactly these bytes are charged already, else 1."""
    sent = account.sent.get(release_key(event), set())
    return np.array([digest not in sent for digest in digests_of(event, ids_K)], np.int64)


def epsilon_once(event: DeviceRound, delta: float) -> float:
    """What this round alone costs each of its users."""
    atom = atom_of(event)
    assert atom is not None  # a round of a device always costs
    return _epsilon({atom: 1}, delta)


def _epsilon(counts: Mapping[Atom, int], delta: float) -> float:
    present = {atom: count for atom, count in counts.items() if count}
    exact = all(atom.mechanism == "gaussian" for atom in present)
    return ACCOUNTANTS["gdp" if exact else "rdp"].epsilon(present, delta)


def _file(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_dev, found.st_ino


def _read(path: Path) -> _Account:
    """Opened, or begun. LedgerError where its chain does not hold."""
    path.parent.mkdir(parents=True, exist_ok=True)
    ledger = Ledger.open(path) if path.exists() else Ledger.create(path)
    account = _Account(ledger, ledger.head(), _file(path))
    book, findings = read_book(path)
    if findings:
        raise LedgerError(f"the device's ledger {path}: {findings[0].text}; nothing is sent")
    for event in book.events:
        if isinstance(event, DeviceRound):
            account.add(event, book.cohorts.get(event.cohort_hash, np.empty(0, np.int64)))
        if isinstance(event, Deviation):
            account.remarks.add(event)
        if isinstance(event, DeviceLimit):
            account.limit = (event.epsilon, event.delta) if event.epsilon else None
    return account
