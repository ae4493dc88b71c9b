"""Privacy facts as frozen records: what was released, from whom it was drawn, with how much noise.

An event says what was *executed*; accountants interpret it. Every record has one canonical JSON text (sorted keys, no
spaces, no NaN), which is what the ledger hashes. A text with another version, an unknown kind or an unknown field is
refused. ``noise_multiplier`` is always std / clipping_norm (for a count or a bit: std / its own L2 bound).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, get_args

from fedquilt.errors import PrivacyError
from fedquilt.privacy.device_events import DeviceLimit, DeviceRound, NormedDeviceRound
from fedquilt.privacy.event_base import Event
from fedquilt.privacy.event_base import ids_hash as ids_hash
from fedquilt.privacy.field_checks import UNIT, Neighbours, Randomness
from fedquilt.privacy.sampling import FixedOrder, FixedSize, NoSampling, Poisson, Sampler
from fedquilt.privacy.sampling import require as _require

VERSION = 1
_LATER = ("row_digests",)  # came later: left out where they are empty, so that older ledgers read as they did
# Causes that do not depend on what users hold. "Too few updates" is no cause: noise alone is released instead.
ABORT_CAUSES = ("no nodes", "stopped by the operator", "crash before the release", "budget")


# --- events ---


@dataclass(frozen=True)
class RunOpened(Event):
    """The claim that a run starts with. What follows in the ledger is checked against it."""

    population: int
    population_hash: str
    sampler: Sampler
    noise_multiplier: float
    clipping_norm: float
    expected_cohort: float
    delta: float
    budget_epsilon: float | None = None
    accountant: str = "rdp"
    mechanism: str = "central"
    unit: str = UNIT
    neighbours: Neighbours = "add-or-remove"
    randomness: Randomness = "simulated"
    sampling_commitment: str = ""  # of the key that cohorts are drawn with; `samplers.commitment`
    config_hash: str = ""
    code_hash: str = ""
    versions: str = ""
    kind: ClassVar[str] = "run-opened"


@dataclass(frozen=True)
class RunResumed(Event):
    """A later process goes on; the hashes must be those of the opening, or differ and be named as a deviation."""

    config_hash: str = ""
    code_hash: str = ""
    kind: ClassVar[str] = "run-resumed"


@dataclass(frozen=True)
class PopulationChanged(Event):
    population: int
    population_hash: str
    reason: str
    kind: ClassVar[str] = "population-changed"


@dataclass(frozen=True)
class PopulationSeen(Event):
    """How far the ledger that the run shares with others had come: ``Head`` as text. It never goes back from there."""

    population_head: str
    kind: ClassVar[str] = "population-seen"


@dataclass(frozen=True)
class BudgetRaised(Event):
    """Somebody said that the run may spend more than it was opened with. Costs nothing itself."""

    budget_epsilon: float
    kind: ClassVar[str] = "budget-raised"


@dataclass(frozen=True)
class Deviation(Event):
    """Something an auditor shall read, in words. Costs nothing."""

    text: str
    kind: ClassVar[str] = "deviation"


@dataclass(frozen=True)
class AbortedRound(Event):
    """A round of which nothing left. Only causes that do not depend on users' data (``ABORT_CAUSES``)."""

    cause: str
    kind: ClassVar[str] = "aborted-round"

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(
            self.cause in ABORT_CAUSES,
            f"a round is aborted free of cost only for {ABORT_CAUSES}, not {self.cause!r}: such a cause depends on"
            " the users, so release the noise instead and record a gaussian-release",
        )


@dataclass(frozen=True)
class Release(Event):
    """Gaussian noise on a sum over one cohort. ``cohort_size`` 0: an empty round, whose noise is released all the same.

    Releases of one round on one cohort are one joint Gaussian for an accountant; see ``accountants.Composition``.
    """

    sampler: Sampler
    noise_multiplier: float
    clipping_norm: float
    expected_cohort: float
    cohort_size: int
    cohort_hash: str
    neighbours: Neighbours = "add-or-remove"
    unit: str = UNIT
    randomness: Randomness = "simulated"
    release_digest: str = ""  # of the released bytes; equal bytes are one release
    releases: ClassVar[bool] = True

    @property
    def empty(self) -> bool:
        return self.cohort_size == 0


@dataclass(frozen=True)
class GaussianRelease(Release):
    """The noised sum of clipped updates, divided by the expected cohort."""

    rule: str = "mean"
    kind: ClassVar[str] = "gaussian-release"


@dataclass(frozen=True)
class AdaptiveClip(Release):
    """The noised share of users below the clipping norm (Andrew et al. 2021); L2 bound of a user's bit: 1/2.

    ``next_norm``: the clipping norm that follows from it, which the next rounds keep to.
    """

    quantile: float = 0.5
    next_norm: float = 0.0
    kind: ClassVar[str] = "adaptive-clip"


@dataclass(frozen=True)
class DistributedRelease(Release):
    """The sum of devices' discretised shares. ``noise_multiplier`` is what the fewest allowed survivors add up to.

    ``l2`` and ``l1``: bounds of a user's rounded row in units of ``granularity``; ``variance`` of the whole noise in
    units of granularity². ``shares``: of the fewest survivors. ``participations``: rounds of the worst single user,
    this one included, which is what the run is charged; 0: every round is charged to everyone.
    """

    noise: Literal["discrete-gaussian", "skellam"] = "skellam"
    granularity: float = 1.0
    variance: float = 1.0
    l2: float = 1.0
    l1: float = 1.0
    dimension: int = 1
    shares: int = 1
    dropout_margin: float = 0.0
    participations: int = 0
    kind: ClassVar[str] = "distributed-release"


@dataclass(frozen=True)
class LocalRound(Release):
    """On the cloud's ledger: users of one cohort were asked for rows that each noises on its own device.

    Recorded before they are asked (no digest), and again with the digest of what came. ``participations``: as of
    ``DistributedRelease``; nobody is amplified, since the cloud sees whose row is whose.
    """

    participations: int = 0
    kind: ClassVar[str] = "local-round"


@dataclass(frozen=True)
class GraphRelease(Event):
    """The noised table of co-click pairs, one row a user (``pair_rows``), of all users at once. Nobody is sampled.

    ``noise`` gaussian: by the cloud, on the sum. skellam: shares of the devices, with the facts of
    ``DistributedRelease``; ``dimension`` is how many cells a user's row can be other than zero in.
    """

    noise_multiplier: float
    clipping_norm: float
    cohort_size: int
    cohort_hash: str
    cells: int
    max_pairs: int
    neighbours: Neighbours = "add-or-remove"
    unit: str = UNIT
    randomness: Randomness = "simulated"
    noise: Literal["gaussian", "skellam"] = "gaussian"
    granularity: float = 1.0
    variance: float = 1.0
    l2: float = 1.0
    l1: float = 1.0
    dimension: int = 1
    shares: int = 1
    dropout_margin: float = 0.0
    release_digest: str = ""
    kind: ClassVar[str] = "graph-release"
    releases: ClassVar[bool] = True


@dataclass(frozen=True)
class MatrixOpened(Event):
    """DP-FTRL: correlated noise over ``rounds`` steps. The whole cost is charged here, before the first step.

    ``noise_multiplier``: std of the uncorrelated noise / clipping_norm; ``sensitivity``: of the strategy matrix under
    at most ``max_participations`` of a user, ``min_separation`` rounds apart. No sampling is assumed.
    """

    mechanism: str
    strategy: Literal["tree", "banded"]
    rounds: int
    noise_multiplier: float
    clipping_norm: float
    sensitivity: float
    max_participations: int
    min_separation: int
    bands: int = 0
    neighbours: Neighbours = "add-or-remove"
    unit: str = UNIT
    randomness: Randomness = "simulated"
    kind: ClassVar[str] = "matrix-opened"


@dataclass(frozen=True)
class TreeRelease(Event):
    """One step of an opened tree or banded mechanism; its cost lies in ``MatrixOpened``."""

    mechanism: str
    step: int
    cohort_size: int
    cohort_hash: str
    release_digest: str = ""
    kind: ClassVar[str] = "tree-release"
    releases: ClassVar[bool] = True


@dataclass(frozen=True)
class LocalRelease(Event):
    """A device noised its own row before it left. Any two rows are neighbours: the row moves by up to 2C.

    ``run_head``: "seq:hash" of the run's ledger that the device was shown, so that a roll-back of it shows.
    """

    client_id: int
    noise_multiplier: float
    clipping_norm: float
    unit: str = UNIT
    neighbours: Neighbours = "replace-one"
    randomness: Randomness = "simulated"
    release_digest: str = ""
    run_head: str = ""
    kind: ClassVar[str] = "local-release"
    releases: ClassVar[bool] = True


@dataclass(frozen=True)
class PopulationOpened(Event):
    """The first entry of a ledger that many runs over one population share: what they may spend together."""

    population: int
    population_hash: str
    delta: float
    budget_epsilon: float
    accountant: str = "rdp"
    kind: ClassVar[str] = "population-opened"


# --- canonical JSON ---

KINDS: dict[str, type[Event]] = {
    kind.kind: kind
    for kind in (
        RunOpened, RunResumed, PopulationChanged, BudgetRaised, Deviation, AbortedRound, GaussianRelease, AdaptiveClip,
        DistributedRelease, LocalRound, MatrixOpened, TreeRelease, LocalRelease,
        DeviceRound, NormedDeviceRound, DeviceLimit, PopulationOpened, PopulationSeen, GraphRelease,
    )
}  # fmt: skip
_SAMPLERS: dict[str, type] = {kind.kind: kind for kind in (Poisson, FixedSize, NoSampling, FixedOrder)}


def canonical(value: Any) -> str:
    """Sorted keys, no spaces, shortest floats that read back alike."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def to_json(event: Event) -> str:
    said = {field.name: getattr(event, field.name) for field in fields(event)}
    tree = {name: _plain(value) for name, value in said.items() if value or name not in _LATER}
    return canonical({**tree, "kind": event.kind, "version": VERSION})


def from_json(text: str) -> Event:
    """PrivacyError where the text is not exactly what ``to_json`` writes for a known event."""
    try:
        tree = json.loads(text)
        version, kind = tree.pop("version"), tree.pop("kind")
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise PrivacyError(f"not an event: {text[:80]!r} ({error})") from None
    _require(version == VERSION, f"event of version {version}; this code reads version {VERSION}")
    _require(kind in KINDS, f"unknown event kind {kind!r}; known: {', '.join(KINDS)}")
    try:
        event = KINDS[kind](**{name: _revive(name, value) for name, value in tree.items()})
    except TypeError as error:
        raise PrivacyError(f"event {kind!r}: {error}") from None
    _require(to_json(event) == text, f"event {kind!r} is not in canonical form: {text[:80]!r}")
    return event


def is_shared(event: Event) -> bool:
    """What a run's own ledger holds only after it was recorded in its population's."""
    return event.releases or isinstance(event, MatrixOpened)


def _plain(value: Any) -> Any:
    if isinstance(value, get_args(Sampler)):
        return {"kind": value.kind, **{field.name: getattr(value, field.name) for field in fields(value)}}
    return list(value) if isinstance(value, tuple) else value


def _revive(name: str, value: Any) -> Any:
    if name == "sampler":
        facts = dict(value)
        kind = facts.pop("kind", None)
        _require(kind in _SAMPLERS, f"unknown sampler {kind!r}; known: {', '.join(_SAMPLERS)}")
        return _SAMPLERS[kind](**facts)
    return tuple(value) if isinstance(value, list) else value
