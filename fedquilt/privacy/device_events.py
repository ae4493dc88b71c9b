"""What a device writes into its own ledger: rounds that its users took part in. Nothing of it leaves the device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from fedquilt.privacy.event_base import Event
from fedquilt.privacy.field_checks import UNIT, Neighbours, Randomness
from fedquilt.privacy.sampling import require


@dataclass(frozen=True)
class DeviceRound(Event):
    """On a device's own ledger: what the users it hosts sent in a round, charged to each of them.

    ``noise`` gaussian: std / clipping norm of what covers one user's row, by this device (local) or as the cloud or
    all devices together promised. Otherwise the facts of ``DistributedRelease``. ``run_head``: of the cloud's ledger.
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
    kind: ClassVar[str] = "device-round"
    releases: ClassVar[bool] = True


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
