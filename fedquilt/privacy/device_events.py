"""What a device writes into its own ledger: rounds that its users took part in. Nothing of it leaves the device."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np

from fedquilt.privacy.event_base import Event, ids_hash
from fedquilt.privacy.field_checks import UNIT, Neighbours, Randomness
from fedquilt.privacy.sampling import require

ROW_DIGEST = 16  # hex digits


@dataclass(frozen=True)
class DeviceRound(Event):
    """On a device's own ledger: what the users it hosts sent in a round, charged to each of them.

    ``noise`` gaussian: std / clipping norm of what covers one user's row, by this device (local) or as the cloud or
    all devices together promised. Otherwise the facts of ``DistributedRelease``. ``run_head``: of the cloud's ledger.
    ``row_digests``: of each user's own bytes, ``ROW_DIGEST`` digits each by increasing id; empty where the users sent
    one sum.
    """

    mechanism: str
    noise_multiplier: float
    clipping_norm: float
    cohort_size: int
    cohort_hash: str
    delta: float
    neighbours: Neighbours = "add-or-remove"
    unit: str = UNIT
    randomness: Randomness = "simulated"
    noise: Literal["gaussian", "discrete-gaussian", "skellam"] = "gaussian"
    variance: float = 1.0
    l2: float = 1.0
    l1: float = 1.0
    dimension: int = 1
    shares: int = 1
    release_digest: str = ""
    run_head: str = ""
    row_digests: str = ""
    kind: ClassVar[str] = "device-round"
    releases: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            len(self.row_digests) in (0, ROW_DIGEST * self.cohort_size), "row_digests must be one for each user or none"
        )


@dataclass(frozen=True)
class NormedDeviceRound(DeviceRound):
    """Of users whose rows were no longer than ``norm_share`` times the clipping norm C.

    Each is charged one unsampled Gaussian with mu = norm_share / noise_multiplier (Feldman and Zrnic 2021,
    arXiv:2008.11193). The share depends on what users hold: theirs to know, nobody else's.
    """

    norm_share: float = 1.0
    kind: ClassVar[str] = "normed-device-round"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.noise == "gaussian" and self.neighbours == "add-or-remove",
            "a row's own norm is charged under Gaussian noise and add-or-remove neighbours only",
        )


@dataclass(frozen=True)
class DeviceLimit(Event):
    """From here on no user of the device may spend more than ``epsilon`` at ``delta``, over all runs; 0: no limit."""

    epsilon: float
    delta: float
    kind: ClassVar[str] = "device-limit"


def release_key(event: DeviceRound) -> tuple[Hashable, ...]:
    """Under equal keys the same bytes are one release. Less noise, or noise of another kind, makes it another one."""
    noise = event.noise, event.noise_multiplier, event.clipping_norm, event.variance, event.l2, event.l1
    return event.run, event.round_, event.mechanism, *noise, event.dimension, event.shares


def digests_of(event: DeviceRound, ids_K: np.ndarray) -> list[str]:
    """What tells each user's bytes apart from others [K]; ``ids_K`` are the event's users in any order."""
    if not event.row_digests:
        return [f"{event.cohort_hash}/{event.release_digest}"] * len(ids_K)
    ranks_K = np.argsort(np.argsort(ids_K)).tolist()
    return [event.row_digests[ROW_DIGEST * rank : ROW_DIGEST * (rank + 1)] for rank in ranks_K]


def with_rows(event: DeviceRound, ids_K: np.ndarray, digests_K: np.ndarray) -> DeviceRound:
    """Of these users, each with a digest of its own."""
    return replace(event, row_digests="".join(digests_K[np.argsort(ids_K)].tolist()))


def of_users(event: DeviceRound, ids_K: np.ndarray, mask_K: np.ndarray) -> tuple[DeviceRound, np.ndarray]:
    """The same release, charged to some of its users [K] alone; -> (event, these)."""
    if mask_K.all():
        return event, ids_K
    kept_K, digests_K = ids_K[mask_K], np.array(digests_of(event, ids_K))[mask_K]
    fewer = replace(event, cohort_size=len(kept_K), cohort_hash=ids_hash(kept_K), row_digests="")
    return (with_rows(fewer, kept_K, digests_K) if event.row_digests else fewer), kept_K
