"""What all privacy events share; the events themselves: ``events``."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields
from typing import ClassVar

import numpy as np

from fedquilt.privacy.field_checks import require_known
from fedquilt.privacy.sampling import require


@dataclass(frozen=True)
class Event:
    """What all records share. ``run`` names the run; ``round_`` is 0 before the first round."""

    run: str
    round_: int
    kind: ClassVar[str] = ""
    releases: ClassVar[bool] = False  # whether something computed from users' data leaves under this record

    def __post_init__(self) -> None:
        require(self.round_ >= 0, f"a round is not negative; got {self.round_}")
        for field in fields(self):
            require_known(field.name, getattr(self, field.name))


def ids_hash(client_ids: np.ndarray) -> str:
    """SHA-256 of sorted ids as little-endian int64."""
    return hashlib.sha256(np.sort(np.asarray(client_ids)).astype("<i8").tobytes()).hexdigest()
