"""Where noise and cohorts come from: a secret key when deployed, a run's seed in simulations only.

Both are functions of (key, context): a round that is run again draws the same numbers, so a resumed run releases the
same bytes. The context of noise includes a hash of what it is added to: another sum never meets the same noise, for
the difference of two such releases would be the sums' own.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Protocol

import numpy as np
from scipy.special import ndtri

from fedquilt.errors import PrivacyError
from fedquilt.seeds import generator_for


class Source(Protocol):
    """``kind`` is what an event records as ``randomness``."""

    kind: ClassVar[Literal["secret", "simulated"]]

    def bits(self, count: int, context: str) -> np.ndarray:
        """uint64 [count]."""

    def normals(self, count: int, context: str) -> np.ndarray:
        """float64 [count], standard normal."""


@dataclass(frozen=True)
class Secret:
    """SHAKE-256 under 256 secret bits. ``Secret.new()`` asks the operating system for them."""

    key: bytes = field(repr=False)
    kind: ClassVar[Literal["secret", "simulated"]] = "secret"

    def __post_init__(self) -> None:
        if len(self.key) < 32:
            raise PrivacyError(f"a secret key has at least 32 bytes; got {len(self.key)}: use Secret.new()")

    @classmethod
    def new(cls) -> Secret:
        return cls(secrets.token_bytes(32))

    def bits(self, count: int, context: str) -> np.ndarray:
        stream = hashlib.shake_256(len(self.key).to_bytes(8, "little") + self.key + context.encode())
        return np.frombuffer(stream.digest(8 * count), "<u8")

    def normals(self, count: int, context: str) -> np.ndarray:
        """Half the sum of four, so that the floats of one draw cannot be read back from the release (Holohan and
        Braghin 2021, arXiv:2107.10138)."""
        uniform_4N = ((self.bits(4 * count, context) >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
        return ndtri(uniform_4N).reshape(4, count).sum(axis=0) / 2


@dataclass(frozen=True)
class Simulated:
    """Keyed generators of a run's seed: anyone who knows the seed can subtract the noise. Refused when deployed."""

    seed: int
    kind: ClassVar[Literal["secret", "simulated"]] = "simulated"

    def bits(self, count: int, context: str) -> np.ndarray:
        return generator_for(self.seed, use=f"privacy/{context}").integers(0, 2**64, count, np.uint64)

    def normals(self, count: int, context: str) -> np.ndarray:
        return generator_for(self.seed, use=f"privacy/{context}").standard_normal(count)


def require_secret(source: Source) -> None:
    """For deployments."""
    if source.kind != "secret":
        raise PrivacyError("noise from a seed protects nobody who knows the seed: deploy with Secret.new()")


def commitment(source: Source) -> str:
    """SHA-256 by which an auditor who is later shown the key sees that it is the one the run began with."""
    key = source.key if isinstance(source, Secret) else f"simulated/{getattr(source, 'seed', '')}".encode()
    return hashlib.sha256(b"fedquilt-sampling\0" + key).hexdigest()
