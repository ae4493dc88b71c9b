"""How a round's users were drawn, as executed. Every record says its ``rate``: what accountants may amplify by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fedquilt.errors import PrivacyError


@dataclass(frozen=True)
class Poisson:
    """Every user takes part independently with probability ``rate``."""

    rate: float
    kind: ClassVar[str] = "poisson"

    def __post_init__(self) -> None:
        require(0 < self.rate <= 1, f"a Poisson rate lies in (0, 1]; got {self.rate}")


@dataclass(frozen=True)
class FixedSize:
    """``size`` users, uniform without replacement, of ``population``."""

    size: int
    population: int
    kind: ClassVar[str] = "fixed-size"

    def __post_init__(self) -> None:
        require(1 <= self.size <= self.population, f"need 1 <= size <= population; got {self.size}, {self.population}")

    @property
    def rate(self) -> float:
        return self.size / self.population


@dataclass(frozen=True)
class NoSampling:
    """Who takes part is not random, or not trusted to be: no amplification is claimed."""

    kind: ClassVar[str] = "none"
    rate: ClassVar[float] = 1.0


@dataclass(frozen=True)
class FixedOrder:
    """Users lie in ``groups`` groups that take turns: each takes part every ``groups`` rounds exactly.

    No amplification is claimed; what counts is that a user takes part seldom, and never sooner.
    """

    groups: int
    kind: ClassVar[str] = "fixed-order"
    rate: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        require(self.groups >= 1, f"a fixed order has at least one group; got {self.groups}")


Sampler = Poisson | FixedSize | NoSampling | FixedOrder


def share_of(sampler: Sampler) -> float:
    """The expected share of the users in a round; not what may be amplified by, which is ``rate``."""
    return 1 / sampler.groups if isinstance(sampler, FixedOrder) else sampler.rate


def most_rounds(sampler: Sampler, rounds: int) -> int:
    """The most of ``rounds`` rounds that a single user takes part in."""
    return -(-rounds // sampler.groups) if isinstance(sampler, FixedOrder) else rounds


def require(holds: bool, text: str) -> None:
    if not holds:
        raise PrivacyError(text)
