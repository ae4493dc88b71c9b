"""Verification: epsilon recomputed from the events alone, and everything that can be checked about how they came about.

Needs neither torch nor flwr: only what accountants need. Nothing that the run says of itself is believed except the
events, and these only as far as chain, order, cohorts and digests bear them out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from fedquilt.errors import PrivacyError
from fedquilt.privacy import events as ev
from fedquilt.privacy.accountants import ACCOUNTANTS, Composition, compose
from fedquilt.privacy.book import (
    Book,
    Finding,
    Released,
    check_shared,
    cohort_sizes,
    head_of,
    ledger_path,
    most_participations,
    read_book,
    records_path,
    released_of,
    remembered_by,
)
from fedquilt.privacy.cohort_checks import FromUsers, check_cohorts
from fedquilt.privacy.gaussian import require_delta
from fedquilt.privacy.graph_release import check_graphs
from fedquilt.privacy.head_checks import check_heads, check_signatures
from fedquilt.privacy.individual import check_device_limits, device_epsilons
from fedquilt.privacy.matrix import require_sensitivity, require_separation
from fedquilt.privacy.mode_checks import check_modes
from fedquilt.privacy.randomness import Source
from fedquilt.privacy.sampling import share_of

TOLD = ("rdp", "pld")  # accountants that need no torch


@dataclass(frozen=True)
class Verdict:
    """``epsilons``: accountant → delta → epsilon of everything on the ledger; an accountant that refused says why.

    ``worst_user``: of a device's ledger of Gaussian rounds, delta → exact epsilon of the user who has spent most.
    """

    findings: tuple[Finding, ...]
    epsilons: Mapping[str, Mapping[float, float] | str]
    num_events: int
    num_releases: int
    head: str
    most_participations: int | None = None
    cohort_sizes: tuple[int, ...] = ()
    worst_user: Mapping[float, float] | None = None

    @property
    def holds(self) -> bool:
        return not self.findings


def verify(
    where: str | Path,
    *,
    devices: Iterable[str | Path] = (),
    heads: Iterable[str] = (),
    released: Iterable[Released] | None = None,
    public_key: str | None = None,
    sampling_source: Source | None = None,
    deployed: bool = False,
    deltas: Sequence[float] = (),
    accountants: Sequence[str] = TOLD,
) -> Verdict:
    """``where``: a run folder or a ledger. ``devices``: their ledgers, whose memory of this one is held against it;
    for the ledger of a population, those of its runs.

    ``heads``: "number:hash" that others remember. ``released``: the run's records (read from the folder unless given).
    ``public_key``: hex, must have signed the last head. ``sampling_source``: the key that cohorts were drawn with,
    to draw them again. ``deployed``: seeded noise is a finding. LedgerError where there is nothing to verify.
    """
    path, devices = ledger_path(where), list(devices)
    book, findings = read_book(path)
    if released is None:
        released = list(released_of(Path(where))) if Path(where).is_dir() else []
        findings += check_records(book, Path(where), released)
    named = {event.run for event in book.events}
    remembered = [*heads, *(one.head for one in released if one.head), *remembered_by(_devices(where, devices), named)]
    checks: list[Iterator[Finding]] = [
        check_heads(book, remembered),
        check_signatures(book, public_key),
        check_order(book),
        check_claims(book, deployed),
        check_cohorts(book, sampling_source),
        check_matrices(book),
        check_modes(book),
        check_graphs(book),
        check_releases(book, list(released)),
        check_shared(book, devices),
        check_device_limits(book),
    ]
    for check in checks:
        findings += check
    deltas = _deltas(book, deltas)
    epsilons, refused = spent(book.events, deltas, accountants)
    findings += refused
    findings += check_budget(book)
    return Verdict(tuple(findings), epsilons, len(book.entries), sum(e.releases for e in book.events),
                   str(head_of(book)), most_participations(book), cohort_sizes(book),
                   _worst_user(book, deltas))  # fmt: skip


def _devices(where: str | Path, named: Iterable[str | Path]) -> list[str | Path]:
    """Those that were named, and those that a simulation keeps in the run's folder."""
    folder = Path(where)
    own = sorted(folder.glob("devices/privacy-*.sqlite")) if folder.is_dir() else []
    return [*named, *own]


# --- checks ---


def check_order(book: Book) -> Iterator[Finding]:
    """One run, opened before anything is released, rounds in order."""
    events = book.events
    if events and isinstance(events[0], ev.PopulationOpened):
        return  # releases of many runs, in the order in which they came
    openings = [event for event in events if isinstance(event, ev.RunOpened)]
    if len(openings) > 1:
        yield Finding("order", f"the run is opened {len(openings)} times")
    if openings and events[0] is not openings[0]:
        yield Finding("order", f"the first entry is {events[0].kind}, not run-opened")
    if not openings and any(isinstance(event, FromUsers) for event in events):
        yield Finding("order", "releases without a run-opened event: nothing says what was claimed")
    if openings and {event.run for event in events} != {openings[0].run}:
        yield Finding("order", f"events of other runs than {openings[0].run!r} are among them")
    last = 0
    for entry in book.entries if openings else []:
        if entry.event.round_ < last and entry.event.releases:
            yield Finding("order", f"entry {entry.seq}: round {entry.event.round_} after round {last}")
        resumed = isinstance(entry.event, ev.RunResumed)  # goes back to a checkpoint; what is sent again is charged
        last = entry.event.round_ if resumed else max(last, entry.event.round_)
    yield from _aborted_and_released(events)


def _aborted_and_released(events: Sequence[ev.Event]) -> Iterator[Finding]:
    """A round may be asked for again by a later process; one process does not do both."""
    aborted, released = set[int](), set[int]()
    for event in events:
        if isinstance(event, ev.RunResumed):
            aborted = set()
        if isinstance(event, ev.AbortedRound):
            aborted.add(event.round_)
        if isinstance(event, FromUsers):
            released.add(event.round_)
        if event.round_ in aborted & released:
            yield Finding("order", f"round {event.round_} is recorded as aborted and as released")
            aborted.discard(event.round_)


def check_claims(book: Book, deployed: bool) -> Iterator[Finding]:
    """Releases keep to what the opening says; other code or configuration, or another population, is named.

    A deviation that is told excuses other noise, for which epsilon is counted, and another divisor; never a sampler.
    """
    opening = book.opening
    told = {event.round_ for event in book.events if isinstance(event, ev.Deviation)}
    population = opening.population if opening else 0
    for event in book.events:
        if isinstance(event, ev.RunOpened | ev.PopulationOpened):
            yield from _holds("claim", require_delta, event.delta, max(event.population, 2))
        if deployed and getattr(event, "randomness", "secret") != "secret":
            yield Finding("randomness", f"{event.kind} of round {event.round_}: noise from a seed in a deployed run")
        if opening is None:
            continue
        if isinstance(event, ev.PopulationChanged):
            population = event.population
            yield from _holds("claim", require_delta, opening.delta, max(population, 2))
        if isinstance(event, ev.RunResumed) and event.config_hash != opening.config_hash:
            yield Finding("claim", f"resumed in round {event.round_} with another configuration")
        if isinstance(event, ev.Release):
            yield from _sampler_against(opening, event, population)
        if isinstance(event, ev.GaussianRelease | ev.DistributedRelease) and event.round_ not in told:
            yield from _against(opening, event, population)


def _sampler_against(opening: ev.RunOpened, event: ev.Release, population: int) -> Iterator[Finding]:
    """``population``: users as of the last change; a fixed size is drawn from them, another rate stays the claim's."""
    where, claimed = f"round {event.round_}", opening.sampler
    if isinstance(claimed, ev.FixedSize):
        claimed = replace(claimed, population=max(population, claimed.size))
    if event.sampler != claimed:
        yield Finding("claim", f"{where} was drawn by {event.sampler}, the run claims {claimed}")
    if event.neighbours != opening.neighbours:
        yield Finding(
            "claim", f"{where} is accounted for {event.neighbours} neighbours, the run for {opening.neighbours}"
        )


def _against(opening: ev.RunOpened, event: ev.Release, population: int) -> Iterator[Finding]:
    where = f"round {event.round_}"
    if event.noise_multiplier < opening.noise_multiplier * (1 - 1e-12):
        yield Finding(
            "claim", f"{where} has noise multiplier {event.noise_multiplier:g} < {opening.noise_multiplier:g}"
        )
    said = opening.expected_cohort
    if population != opening.population:
        said = share_of(event.sampler) * population
    if abs(event.expected_cohort - said) > 1e-9 * said:
        yield Finding("claim", f"{where} divides by {event.expected_cohort:g}, the run says {said:g}")


def check_matrices(book: Book) -> Iterator[Finding]:
    """Steps belong to an opened mechanism, are released once, and users keep their distance."""
    opened: dict[str, ev.MatrixOpened] = {}
    digests: dict[tuple[str, int], str] = {}
    last: dict[str, dict[int, int]] = {}
    times: dict[tuple[str, int], int] = {}
    for event in book.events:
        if isinstance(event, ev.MatrixOpened):
            opened[event.mechanism] = event
            yield from _holds("matrix", require_sensitivity, event)
        if not isinstance(event, ev.TreeRelease):
            continue
        mechanism = opened.get(event.mechanism)
        if mechanism is None or not 0 <= event.step < mechanism.rounds:
            yield Finding("matrix", f"round {event.round_}: step {event.step} of {event.mechanism!r} was not opened")
            continue
        if digests.setdefault((event.mechanism, event.step), event.release_digest) != event.release_digest:
            yield Finding("matrix", f"step {event.step} of {event.mechanism!r} was released with two different sums")
        ids_K = book.cohorts.get(event.cohort_hash, np.empty(0, np.int64))
        users = last.setdefault(event.mechanism, {})
        yield from _holds("matrix", require_separation, users, ids_K, event.step, mechanism.min_separation)
        for user in ids_K.tolist():
            times[event.mechanism, user] = times.get((event.mechanism, user), 0) + 1
    for (name, user), count in times.items():
        if count > opened[name].max_participations:
            yield Finding(
                "matrix", f"user {user} took part {count} times, {name!r} allows {opened[name].max_participations}"
            )
            return


def _holds(kind: str, check: Callable[..., object], *arguments: object) -> Iterator[Finding]:
    try:
        check(*arguments)
    except PrivacyError as error:
        yield Finding(kind, str(error))


def check_releases(book: Book, released: Sequence[Released]) -> Iterator[Finding]:
    """No release without an event, and no bytes that left under two rounds."""
    rounds: dict[int, set[str]] = {}
    by_digest: dict[str, int] = {}
    for event in book.events:
        if not event.releases:
            continue
        digest = getattr(event, "release_digest", "")
        rounds.setdefault(event.round_, set()).add(digest)
        if digest and by_digest.setdefault(digest, event.round_) != event.round_:
            yield Finding(
                "noise", f"rounds {by_digest[digest]} and {event.round_} released the same bytes: noise was reused"
            )
    for one in released:
        if one.round_ not in rounds:
            yield Finding("release", f"round {one.round_} left the cloud and has no event")
        elif one.digest and one.digest not in rounds[one.round_]:
            yield Finding("release", f"what left in round {one.round_} is not what its event says")


def check_records(book: Book, folder: Path, released: Sequence[Released]) -> Iterator[Finding]:
    """A run's folder holds the records of what left; without them no release can lack an event.

    A run that was killed lacks the last ones; one that is over lacks none.
    """
    rounds = {event.round_ for event in book.events if isinstance(event, ev.Release | ev.TreeRelease)}
    if not folder.is_dir() or book.opening is None or not rounds:
        return
    if not records_path(folder).is_file():
        yield Finding("evidence", f"{records_path(folder).name} is missing: what left the cloud cannot be checked")
        return
    recorded = {one.round_ for one in released}
    last = max(rounds if (folder / "results.json").is_file() else recorded, default=0)
    if lost := sorted(round_ for round_ in rounds - recorded if round_ <= last):
        yield Finding("evidence", f"{len(lost)} rounds of the ledger, the first {lost[0]}, are not in"
                      f" {records_path(folder).name}: what left in them cannot be checked")  # fmt: skip


def check_budget(book: Book) -> Iterator[Finding]:
    first = book.events[0] if book.events else None
    opening = first if isinstance(first, ev.PopulationOpened) else book.opening
    if opening is None or opening.budget_epsilon is None:
        return
    try:
        total = ACCOUNTANTS[opening.accountant].epsilon(compose(book.events).counts, opening.delta)
    except (PrivacyError, KeyError):
        return  # said elsewhere
    budget = budget_of(book.events)
    if budget is not None and total > budget:
        yield Finding("budget", f"epsilon {total:.4g} was spent of a budget of {budget:g}")


def budget_of(events: Iterable[ev.Event]) -> float | None:
    """As it was last said: by the opening, or raised later."""
    kinds = ev.RunOpened | ev.BudgetRaised | ev.PopulationOpened
    said = [event.budget_epsilon for event in events if isinstance(event, kinds)]
    return said[-1] if said else None


# --- figures ---


def spent(
    events: Sequence[ev.Event], deltas: Sequence[float], accountants: Sequence[str]
) -> tuple[dict[str, dict[float, float] | str], list[Finding]]:
    """Epsilons from the events alone; a finding where they cannot be composed at all."""
    try:
        counts = compose(events).counts
    except PrivacyError as error:
        return {name: str(error) for name in accountants}, [Finding("accounting", str(error))]
    result: dict[str, dict[float, float] | str] = {}
    for name in accountants:
        try:
            result[name] = {delta: ACCOUNTANTS[name].epsilon(counts, delta) for delta in deltas}
        except PrivacyError as error:
            result[name] = str(error)
    return result, []


def _worst_user(book: Book, deltas: Iterable[float]) -> dict[float, float] | None:
    by_delta = {delta: device_epsilons(book.events, book.cohorts, delta) for delta in deltas}
    worst = {delta: max(by_user.values()) for delta, by_user in by_delta.items() if by_user}
    return worst or None


def burn_down(events: Iterable[ev.Event], delta: float, accountant: str = "rdp") -> list[tuple[int, float]]:
    """(round, epsilon spent after it), one pair a round that released something."""
    total, rows = Composition(), dict[int, float]()
    for event in events:
        total.add(event)
        if event.releases:
            rows[event.round_] = ACCOUNTANTS[accountant].epsilon(total.counts, delta)
    return list(rows.items())


def _deltas(book: Book, asked: Sequence[float]) -> tuple[float, ...]:
    openings = (e for e in book.events if isinstance(e, ev.RunOpened | ev.PopulationOpened))
    own = tuple(event.delta for event in openings)[:1] or (1e-6,)
    return tuple(dict.fromkeys([*own, *asked]))
