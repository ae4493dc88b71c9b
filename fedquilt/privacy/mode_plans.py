"""Planning noise that is not the cloud's own: local, distributed and DP-FTRL, by what their runs are charged.

The charge is that of ``server.mechanisms``, which plans with the same functions: the rounds of the worst single user,
without amplification; of DP-FTRL the whole mechanism, before its first round.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from fedquilt.errors import PrivacyError
from fedquilt.privacy.accountants import accountant_named, atom_of
from fedquilt.privacy.distributed import DistributedNoise
from fedquilt.privacy.events import MatrixOpened
from fedquilt.privacy.gaussian import analytic_noise_multiplier, gaussian_epsilon, require_epsilon
from fedquilt.privacy.matrix import prefix_noise_variance, sensitivity_of
from fedquilt.privacy.plan import MOST_ROUNDS, largest_count, smallest_noise, steps_to
from fedquilt.privacy.randomness import Simulated
from fedquilt.privacy.sampling import FixedOrder, Sampler, most_rounds, share_of

Correlation = Literal["tree", "banded"]
CORRELATIONS: dict[str, Correlation] = {"banded": "banded", "tree": "tree"}
SLACK = 1 + 1e-9  # so that rounding does not put a planned run a hair beyond its budget


@dataclass(frozen=True)
class Setting:
    """A run but for its noise and rounds. ``dimension`` (P), ``noise`` and ``dropout_margin`` are of distributed runs,
    ``correlation`` and ``bands`` (0: as many as users' turns) of DP-FTRL.
    """

    mode: str
    sampler: Sampler
    users: int
    delta: float
    dimension: int = 0
    noise: Literal["skellam", "discrete-gaussian"] = "skellam"
    dropout_margin: float = 0.1
    correlation: Correlation = "banded"
    bands: int = 0

    @property
    def shares(self) -> int:
        """Users of a round."""
        return max(round(share_of(self.sampler) * self.users), 1)

    @property
    def turns(self) -> int:
        return self.sampler.groups if isinstance(self.sampler, FixedOrder) else 1

    def matrix(self, rounds: int) -> MatrixOpened:
        """DP-FTRL's mechanism at noise multiplier 1 and clipping norm 1, with its sensitivity."""
        bands = min(self.bands or self.turns, rounds) if self.correlation == "banded" else 0
        turns = most_rounds(self.sampler, rounds)
        opened = MatrixOpened("", 0, "updates", self.correlation, rounds, 1.0, 1.0, 1.0, turns, self.turns, bands=bands)
        return replace(opened, sensitivity=sensitivity_of(opened))


@dataclass(frozen=True)
class ModePlan:
    """``noise_multiplier`` as the ledger has it: of one row (local), of the fewest survivors' sum (distributed), of the
    white noise that is mixed over rounds (DP-FTRL).
    """

    setting: Setting
    noise_multiplier: float
    rounds: int

    @property
    def epsilon(self) -> float:
        return epsilon_of(self.setting, self.noise_multiplier, self.rounds)

    @property
    def on_the_mean(self) -> float:
        """Std of the noise on a coordinate of the mean over all rounds, in clipping norms."""
        return self.noise_multiplier * math.sqrt(_SUMMED[self.setting.mode](self)) / (self.rounds * self.setting.shares)


def epsilon_of(setting: Setting, noise_multiplier: float, rounds: int) -> float:
    """PrivacyError for a mode without a plan here, or noise that no bound covers."""
    if noise_multiplier <= 0:
        raise PrivacyError(f"noise_multiplier = {noise_multiplier:g} with a budget: no budget covers no noise")
    return _charge(setting.mode)(setting, noise_multiplier, rounds)


def curve(made: ModePlan, points: int = 12) -> list[tuple[int, float]]:
    """(rounds, epsilon of a plan of so many rounds at this noise). DP-FTRL is charged whole, before its first round."""
    return [(count, epsilon_of(made.setting, made.noise_multiplier, count)) for count in steps_to(made.rounds, points)]


def noise_for(setting: Setting, epsilon: float, rounds: int) -> float:
    """The smallest noise multiplier (distributed: to 0.1 %) with which so many rounds stay within epsilon."""
    require_epsilon(epsilon)
    if rounds < 1:
        raise PrivacyError(f"a plan has at least one round; got {rounds}")
    _charge(setting.mode)
    return _NOISE[setting.mode](setting, epsilon, rounds)


def rounds_for(setting: Setting, epsilon: float, noise_multiplier: float) -> int:
    """The most rounds that stay within epsilon. PrivacyError where not one does."""
    require_epsilon(epsilon)

    def fits(rounds: int) -> bool:
        return epsilon_of(setting, noise_multiplier, rounds) <= epsilon

    if not fits(1):
        raise PrivacyError(
            f"one round of mode {setting.mode!r} at noise multiplier {noise_multiplier:g} costs"
            f" {epsilon_of(setting, noise_multiplier, 1):.3g} already, more than epsilon {epsilon:g}: take more noise"
        )
    return largest_count(fits, _MOST_ROUNDS.get(setting.mode, MOST_ROUNDS))


# --- local: two rows are 2C apart, a user's rounds compose to one Gaussian ---


def _local_epsilon(setting: Setting, noise_multiplier: float, rounds: int) -> float:
    mu = 2 * math.sqrt(most_rounds(setting.sampler, rounds)) / noise_multiplier
    return gaussian_epsilon(mu, setting.delta)


def _local_noise(setting: Setting, epsilon: float, rounds: int) -> float:
    one = 2 * analytic_noise_multiplier(epsilon, setting.delta)
    return one * math.sqrt(most_rounds(setting.sampler, rounds)) * SLACK


# --- distributed: rounding and the discrete distribution are in the bound ---


def _distributed_epsilon(setting: Setting, noise_multiplier: float, rounds: int) -> float:
    noise = DistributedNoise(
        setting.noise, noise_multiplier, 1.0, setting.shares, setting.dimension, setting.dropout_margin
    )
    atom = atom_of(noise.event("", 0, np.empty(0, np.int64), Simulated(0)))
    assert atom is not None  # a release costs
    return accountant_named("rdp").epsilon({atom: most_rounds(setting.sampler, rounds)}, setting.delta)


def _distributed_noise(setting: Setting, epsilon: float, rounds: int) -> float:
    if setting.dimension < 1:
        raise PrivacyError("distributed noise is planned for a patch of known size: give its dimension")

    def fits(z: float) -> bool:
        try:
            return _distributed_epsilon(setting, z, rounds) <= epsilon
        except PrivacyError:  # so little noise a share that the bound does not hold
            return False

    return smallest_noise(fits, f"epsilon {epsilon:g} at delta {setting.delta:g} over {rounds} rounds")


# --- DP-FTRL: the mechanism as a whole is one Gaussian ---


def _correlated_epsilon(setting: Setting, noise_multiplier: float, rounds: int) -> float:
    return gaussian_epsilon(setting.matrix(rounds).sensitivity / noise_multiplier, setting.delta)


def _correlated_noise(setting: Setting, epsilon: float, rounds: int) -> float:
    return setting.matrix(rounds).sensitivity * analytic_noise_multiplier(epsilon, setting.delta) * SLACK


Charge = Callable[[Setting, float, int], float]
_CHARGES: dict[str, Charge] = {
    "local": _local_epsilon,
    "distributed": _distributed_epsilon,
    "dp-ftrl": _correlated_epsilon,
}
_NOISE: dict[str, Charge] = {"local": _local_noise, "distributed": _distributed_noise, "dp-ftrl": _correlated_noise}
_MOST_ROUNDS = {"dp-ftrl": 10_000}  # a search for more asks for sensitivities of matrices of that size
_SUMMED: dict[str, Callable[[ModePlan], float]] = {  # variance of the noise on the sum of all rounds, at multiplier 1
    "local": lambda plan: float(plan.rounds * plan.setting.shares),
    "distributed": lambda plan: float(plan.rounds),
    "dp-ftrl": lambda plan: float(prefix_noise_variance(plan.setting.matrix(plan.rounds))[-1]),
}
MODES = tuple(_CHARGES)


def _charge(mode: str) -> Charge:
    if mode not in _CHARGES:
        raise PrivacyError(f"no mode named {mode!r} is planned here; known: {', '.join(_CHARGES)} (and central)")
    return _CHARGES[mode]
