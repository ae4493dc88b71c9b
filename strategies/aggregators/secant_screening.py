"""Secant screening: senders whose updates answer to the patch's moves the wrong way, or who lose by them, go."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import torch

from fedquilt.seeds import key_for
from strategies.distances import nearest, squared_distances
from strategies.pre_rules.adaptive_clipping import AdaptiveClipping
from strategies.rows import norms, weighted_sum
from strategies.rules import AGGREGATORS, RoundContext, State, require_count, require_number, require_users
from strategies.secants import Secants, observe, of_senders, recall


@AGGREGATORS.register("secant-screening")
@dataclass(frozen=True)
class SecantScreening:
    """Up to f users are left out for what their updates did over past rounds; the others are clipped
    (``adaptive-clipping``), mixed with their nearest (``nearest-neighbour-mixing``) and averaged.  O(K²·P).

    A user's answer is -Σ Δu·Δw / Σ |Δu| |Δw|: gaps of its update and of the patch from their running means, summed with
    a ``memory`` below 1. It is positive for the update of any convex loss, and reversed for -c times the others' mean.
    Left out are the lowest, if below ``share`` of the median answer, among users seen in ``warm_up`` rounds.

    As far as f then goes: a user's gain Σ ū·Δw̄ / Σ |ū| |Δw̄|, of the running means, tells whether its own loss fell on
    the patch's way. Seen in ``settle`` rounds, users below ``gain_share`` of the median gain are left out for
    ``probation`` rounds, and beyond only below ``loss_share`` of it: others' progress without them costs a liar with a
    loss of its own, such as of flipped labels, dearly, and an honest user with rare data little.

    Nobody is left out by a median that is not above 0. Clipping and mixing withstand f however many are left out, as
    these may be honest: nothing is won by having others left out. Of every user ever seen the state holds 2 numbers for
    each of at most ``num_coordinates`` drawn coordinates. Server steps other than plain addition blunt the answers. Who
    begins to lie after probation, or whose bad loss falls along with the others', passes. f = 0 is the mean.

    Needs K > 2f, and at least 2f + 1 users are kept, as clipping and mixing need these even if all who were left out
    are honest: at K <= 3f fewer than f are left out, at K = 2f + 1 nobody is.
    """

    num_byzantine: int = 1
    share: float = 0.25
    pace: float = 0.1
    memory: float = 0.99
    warm_up: int = 15
    gain_share: float = 0.35
    settle: int = 60
    probation: int = 90
    loss_share: float = -0.75
    num_coordinates: int = 4096
    seed: int = 0
    client_ids_K: np.ndarray | None = field(default=None, repr=False, compare=False)

    source = "fedquilt, after FLDetector (Zhang et al. 2022, arXiv:2207.09209)"
    cost = "K²·P"
    sensitivity = None
    breakdown = 0.5
    scale = needs_ids = True

    def __post_init__(self) -> None:
        require_count("num_byzantine", self.num_byzantine)
        for name in ("warm_up", "settle", "probation", "num_coordinates"):
            require_count(name, getattr(self, name), least=1)
        for name in ("pace", "memory"):
            require_number(name, getattr(self, name))
            if getattr(self, name) > 1:
                raise ValueError(f"{name} must be at most 1, got {getattr(self, name)!r}")
        for name, above in (("share", -1.0), ("gain_share", -1.0), ("loss_share", -100.0)):
            require_number(name, getattr(self, name), above=above)

    def needs(self, num_byzantine: int) -> int:
        return 2 * num_byzantine + 1

    def in_round(self, context: RoundContext) -> SecantScreening:
        seed = key_for(context.run_seed, 0, 0, "secant-screening") >> 1  # of the run: coordinates stay the same
        return replace(self, seed=seed, client_ids_K=context.client_ids_K)

    def __call__(self, updates_KP: torch.Tensor, weights_K: torch.Tensor, state: State) -> torch.Tensor:
        return self.step(updates_KP, weights_K, state)[0]

    def step(self, updates_KP: torch.Tensor, weights_K: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
        given_K, seen = self._judge(updates_KP, state)
        update_P = weighted_sum(given_K, updates_KP)
        position_B = seen.position_B + update_P.numpy()[self._drawn(len(update_P))]
        return update_P, replace(seen, position_B=position_B.astype(np.float32)).stored()

    def row_weights(self, updates_KP: torch.Tensor, weights_K: torch.Tensor, state: State) -> torch.Tensor:
        return self._judge(updates_KP, state)[0]

    def _judge(self, updates_KP: torch.Tensor, state: State) -> tuple[torch.Tensor, Secants]:
        k, drawn = require_users(self, updates_KP), self._drawn(updates_KP.shape[1])
        ids_K = np.arange(k) if self.client_ids_K is None else self.client_ids_K
        seen = observe(recall(state, len(drawn)), ids_K, updates_KP.numpy()[:, drawn], self.pace, self.memory)
        kept = torch.from_numpy(np.flatnonzero(~self._left_out(seen, ids_K)))
        given_K = torch.zeros(k, dtype=updates_KP.dtype)
        given_K[kept] = _mixed_weights(updates_KP[kept], self.num_byzantine)
        return given_K, seen

    def _left_out(self, seen: Secants, ids_K: np.ndarray) -> np.ndarray:
        """bool [K]: whose answers are too low, then, as far as f and the 2f + 1 to keep go, who gained too little."""
        rounds_K, out_K = of_senders(seen, seen.rounds_C, ids_K), np.zeros(len(ids_K), bool)
        most = min(self.num_byzantine, len(ids_K) - self.needs(self.num_byzantine))
        on_probation_K = rounds_K <= self.settle + self.probation
        gain_share_K = np.where(on_probation_K, self.gain_share, self.loss_share)
        tests = (
            (seen.answers_C, np.full(len(ids_K), self.share), self.warm_up),
            (seen.shares_gained_C, gain_share_K, self.settle),
        )
        for values_C, least_K, rounds in tests:
            values_K, judged_K = of_senders(seen, values_C, ids_K), rounds_K > rounds
            middle = float(np.median(values_K[judged_K])) if 2 * judged_K.sum() > len(ids_K) else 0.0
            if middle > 0:
                low = np.flatnonzero(judged_K & (values_K < least_K * middle) & ~out_K)
                room = most - int(out_K.sum())
                out_K[low[np.argsort(values_K[low], kind="stable")[:room]]] = True
        return out_K

    def _drawn(self, num_parameters: int) -> np.ndarray:
        if num_parameters <= self.num_coordinates:
            return np.arange(num_parameters)
        generator = torch.Generator().manual_seed(self.seed)
        return torch.randperm(num_parameters, generator=generator)[: self.num_coordinates].sort().values.numpy()


def _mixed_weights(updates_KP: torch.Tensor, f: int) -> torch.Tensor:
    """[K]: how much each row counts in the mean of mixed, clipped rows."""
    k, even_K = len(updates_KP), torch.full((len(updates_KP),), 1 / len(updates_KP))
    clipped_KP, _, _ = AdaptiveClipping(f)(updates_KP, even_K, RoundContext())
    chosen = nearest(squared_distances(clipped_KP), k - f)
    counts_K = torch.from_numpy(np.bincount(chosen.ravel(), minlength=k)).to(torch.float64) / (k * (k - f))
    before_K, after_K = norms(updates_KP), norms(clipped_KP)
    factor_K = torch.where(before_K > 0, after_K / before_K.clamp(min=1e-300), torch.ones_like(before_K))
    return (counts_K * factor_K).to(updates_KP.dtype)
