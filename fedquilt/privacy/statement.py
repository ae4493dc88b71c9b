"""What a run promised its users and kept, as facts that text, JSON and a page are made from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from fedquilt import __version__
from fedquilt.errors import PrivacyError
from fedquilt.privacy import events as ev
from fedquilt.privacy.accountants import compose
from fedquilt.privacy.audit.report import in_a_line, stored_audit
from fedquilt.privacy.book import ledger_path, read_book
from fedquilt.privacy.plan import Plan, assumptions
from fedquilt.privacy.signing import public_key, signature_of
from fedquilt.privacy.user_quantiles import user_quantiles
from fedquilt.privacy.verify import TOLD, budget_of, burn_down, verify

RELEASED = {
    ev.GaussianRelease.kind: "the noised mean of users' clipped updates, as the next patch, to every device",
    ev.AdaptiveClip.kind: "the noised share of users below the clipping norm, to every device as the next norm",
    ev.DistributedRelease.kind: "the sum of updates that devices noised together, as the next patch, to every device",
    ev.TreeRelease.kind: "a step of a correlated-noise sum of updates, as the next patch, to every device",
    ev.LocalRelease.kind: "each device's own noised update, to the cloud",
    ev.GraphRelease.kind: "the noised table of co-click pairs, as the co-click graph, to the cloud",
    ev.LocalRound.kind: "updates that each device noised by itself, to the cloud, and what it makes of them, to all",
}

NOISE_IN_WORDS = {  # clipping norm, noise multiplier
    "central": "Each person's contribution was cut to a fixed size ({0:g}) and noise {1:g} times that size was added to"
    " the sum of all before anything was published.",
    "adaptive": "Each person's contribution was cut to a size that followed what people send ({0:g} at first), and"
    " noise on the sum of all and on the count that moved the size was added before anything was published: together as"
    " much as noise {1:g} times that size on the sum alone.",
    "local": "Each person's own device cut the contribution to a fixed size ({0:g}) and added noise {1:g} times that"
    " size before anything left it; nobody else has to be trusted with the noise.",
    "distributed": "Each person's own device cut the contribution to a fixed size ({0:g}) and added a share of the"
    " noise; in the sum of a round the shares are noise at least {1:g} times that size. Single shares protect little:"
    " the promise is for those who see sums only.",
    "dp-ftrl": "Each person's contribution was cut to a fixed size ({0:g}); noise {1:g} times that size, mixed over the"
    " rounds so that much of it cancels, was added to each round's sum. Nothing is assumed of who was asked when, but"
    " how often.",
}
NEIGHBOURS_IN_WORDS = {  # the other world of the promise, and what is guessed
    "add-or-remove": ("had that person not taken part at all", "you took part"),
    "replace-one": (
        "had that person's data been entirely different; that the person is among them is not hidden",
        "your data are your real ones and not certain others",
    ),
}
OUTSIDE = (
    "evaluations: held-out clicks, ranks and lists, or histograms of ranks, as far as a device's owner lets them out (a"
    " simulated device tells all). No noise of this run covers them, and no epsilon of it; what a device noised by"
    " itself is charged on the device's own ledger"
)


def statement(where: str | Path, audit: Mapping[str, Any] | None = None, further: Sequence[str] = ()) -> dict[str, Any]:
    """All facts of the statement, plain values. ``audit``: what an audit found; unless given, the one kept in the run's
    folder. ``further``: accountants beside those that every statement tells."""
    path = ledger_path(where)
    book, _ = read_book(path)
    opening, audit = book.opening, audit or stored_audit(where)
    if opening is None:
        raise PrivacyError(f"{path} has no run-opened event: there is no claim to state")
    deltas = tuple(sorted({opening.delta, *(10.0**-k for k in range(4, 9) if 10.0**-k < 1 / opening.population)}))
    verdict = verify(where, deltas=deltas, accountants=(*TOLD, *further))
    kinds = [event.kind for event in book.events if event.releases]
    by_user, why_not = user_quantiles(book, opening)
    facts = {
        "made_by": f"fedquilt {__version__}",
        "run": opening.run,
        "unit": f"one {opening.unit}, with all rows that the {opening.unit} ever sends",
        "neighbours": opening.neighbours,
        "population": opening.population,
        "mechanism": opening.mechanism,
        "particulars": _particulars(book.events),
        "sampler": str(opening.sampler),
        "sampler_kind": opening.sampler.kind,
        "sampling_observed": _observed(verdict.cohort_sizes, opening),
        "clipping_norm": opening.clipping_norm,
        "noise_multiplier": opening.noise_multiplier,
        "randomness": opening.randomness,
        "rounds": len({e.round_ for e in book.events if e.releases and not isinstance(e, ev.GraphRelease)}),
        "aborted_rounds": sum(isinstance(event, ev.AbortedRound) for event in book.events),
        "delta": opening.delta,
        "budget_epsilon": budget_of(book.events),
        "epsilon": _best(verdict.epsilons, opening.delta),
        "epsilons": {name: _texts(by_delta) for name, by_delta in verdict.epsilons.items()},
        "accountant": f"{opening.accountant}, dp-accounting {_version('dp-accounting')}",
        "code": opening.code_hash,
        "releases": {
            kind: {"count": kinds.count(kind), "what": RELEASED.get(kind, kind)} for kind in dict.fromkeys(kinds)
        },
        "never_leaves": _never_leaves(book.events),
        "outside": OUTSIDE,
        "most_participations": verdict.most_participations,
        "epsilon_by_user_quantile": by_user,
        "epsilon_by_user_why_not": why_not,
        "burn_down": _thin(burn_down(book.events, opening.delta)),
        "assumptions": _assumptions(opening, book.events),
        "audit": dict(audit) if audit else None,
        "audit_in_a_line": in_a_line(audit, verdict.head) if audit else "none was made",
        "deviations": [
            f"round {event.round_}: {event.text}" for event in book.events if isinstance(event, ev.Deviation)
        ]
        + [
            f"round {event.round_}: the budget was raised to epsilon {event.budget_epsilon:g}"
            for event in book.events
            if isinstance(event, ev.BudgetRaised)
        ],
        "findings": [f"{finding.kind}: {finding.text}" for finding in verdict.findings],
        "holds": verdict.holds,
        "ledger_head": verdict.head,
    }
    return settled(facts)


def in_words(facts: Mapping[str, Any]) -> list[str]:
    """For a person who is no engineer: what it means, in sentences."""
    epsilon, delta = facts["epsilon"], facts["delta"]
    noise = facts["noise_multiplier"]
    if epsilon is None:
        return ["No accountant could vouch for this run. Nothing is promised."]
    bound = _belief(epsilon)
    otherwise, guessed = NEIGHBOURS_IN_WORDS[facts["neighbours"]]
    sentences = [
        f"Of {facts['population']:,} people, every one is protected in the same way: whatever came out of this run"
        f" would have come out almost as likely {otherwise}.",
        f"Someone who knew everything about everyone else, and who before the run thought it 50 % likely that"
        f" {guessed}, could after seeing all that was published be at most {bound} sure of it (epsilon {epsilon:.2f}).",
        f"The chance that this promise fails is at most {delta:.1g}.",
        NOISE_IN_WORDS[_wording(facts)].format(facts["clipping_norm"], noise),
        f"What never leaves a device: {facts['never_leaves']}.",
        f"Outside of this promise are {facts['outside']}.",
    ]
    if facts["randomness"] != "secret":
        sentences.append("This was a simulation: its noise comes from a known seed and protects nobody.")
    if not facts["holds"]:
        sentences.append("The check of the records FAILED; see the findings. Do not rely on this statement.")
    return sentences


def _wording(facts: Mapping[str, Any]) -> str:
    if ev.AdaptiveClip.kind in facts["releases"]:
        return "adaptive"
    return facts["mechanism"] if facts["mechanism"] in NOISE_IN_WORDS else "central"


def settled(facts: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON gives them back, in one order, so that a page made from either is the same; infinity is None there."""
    return dict(json.loads(ev.canonical(_finite(facts))))


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _finite(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    value = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(value, float) and not np.isfinite(value) else value


def digest(facts: Mapping[str, Any]) -> str:
    """SHA-256 of the canonical facts; what a signature of the statement covers."""
    return hashlib.sha256(ev.canonical(facts).encode()).hexdigest()


def sign(facts: Mapping[str, Any], private_key: bytes) -> dict[str, str]:
    """Ed25519 over ``digest(facts)``; a page is checked by making it again from the facts in it."""
    text = digest(facts)
    return {
        "digest": text,
        "public_key": public_key(private_key),
        "signature": signature_of(text.encode(), private_key),
    }


def _belief(epsilon: float) -> str:
    """Posterior of a 50 % prior: e^ε / (1 + e^ε)."""
    share = 1 / (1 + np.exp(-min(epsilon, 700.0)))
    return f"{100 * share:.1f} %" if share < 0.9995 else "practically 100 %"


def _best(epsilons: Mapping[str, Mapping[float, float] | str], delta: float) -> float | None:
    """Each is a proven upper bound, so the smallest is one."""
    known = [by_delta[delta] for by_delta in epsilons.values() if not isinstance(by_delta, str)]
    finite = [epsilon for epsilon in known if np.isfinite(epsilon)]
    return min(finite) if finite else None


def _texts(by_delta: Mapping[float, float] | str) -> dict[str, float | None] | str:
    if isinstance(by_delta, str):
        return by_delta
    return {f"{at:.3g}": float(epsilon) if np.isfinite(epsilon) else None for at, epsilon in by_delta.items()}


def _observed(sizes: tuple[int, ...], opening: ev.RunOpened) -> str:
    if not sizes:
        return "no cohort was recorded"
    spread = f"{min(sizes)} to {max(sizes)}, mean {np.mean(sizes):.1f}"
    return f"cohorts of {spread} users, {opening.expected_cohort:g} expected"


def _never_leaves(events: list[ev.Event]) -> str:
    """Where the cloud noises a graph, it is trusted with the pairs that each device sent for it."""
    trusted = any(isinstance(event, ev.GraphRelease) and event.noise == "gaussian" for event in events)
    kept = "local graphs and personal patches" if trusted else "clicks, local graphs, and personal patches"
    told = "; pairs of clicked items went to the cloud for the co-click graph, which was trusted to add the noise"
    return f"{kept}: they stay on the device, so they need no noise{told if trusted else ''}"


def _particulars(events: list[ev.Event]) -> list[str]:
    """What a mechanism promises beyond its noise multiplier, as of its last event."""
    told: dict[str, str] = {}
    for event in events:
        if isinstance(event, ev.AdaptiveClip):
            told[event.kind] = f"clipping norm follows quantile {event.quantile:g}, {event.next_norm:g} in the end"
        if isinstance(event, ev.DistributedRelease):
            told[event.kind] = (
                f"{event.noise} noise, enough of it while at most {event.dropout_margin:.0%} of a round's users vanish"
            )
        if isinstance(event, ev.MatrixOpened):
            told[event.kind] = (
                f"{event.strategy} over {event.rounds} rounds, each user in at most {event.max_participations} of them,"
                f" {event.min_separation} apart"
            )
        if isinstance(event, ev.GraphRelease):
            told[event.kind] = (
                f"co-click graph from at most {event.max_pairs} pairs of items of each user, in {event.cells:,} cells,"
                f" {event.noise} noise {event.noise_multiplier:.4g} times a user's part"
            )
    return list(told.values())


def _assumptions(opening: ev.RunOpened, events: list[ev.Event]) -> list[dict[str, Any]]:
    """For plain central runs: every round alike. Update and clipping quantile of a round are one Gaussian."""
    releases = [event for event in events if event.releases]
    if not releases or not all(isinstance(event, ev.GaussianRelease | ev.AdaptiveClip) for event in releases):
        return []
    try:
        counts = compose(events).counts
    except PrivacyError:
        return []  # a finding says so
    if len(counts) != 1 or opening.noise_multiplier == 0:
        return []
    ((atom, rounds),) = counts.items()
    noise = atom.parameters[0] * (2 if opening.neighbours == "replace-one" else 1)
    plan = Plan(opening.sampler, noise, rounds, opening.population, opening.delta, "rdp")
    cohort = max(1, min(round(opening.expected_cohort), opening.population))
    return [
        {"sampling": row.sampling, "neighbours": row.neighbours, "accountant": row.accountant,
         "epsilon": row.epsilon, "executed": row.executed, "note": row.note}
        for row in assumptions(plan, cohort, ("pld", "rdp", "gdp"))
    ]  # fmt: skip


def _thin(rows: list[tuple[int, float]], most: int = 60) -> list[tuple[int, float]]:
    if len(rows) <= most:
        return rows
    places = np.unique(np.linspace(0, len(rows) - 1, most).round().astype(int))
    return [rows[place] for place in places]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
