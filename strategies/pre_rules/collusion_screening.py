"""Collusion screening: rows that a few others repeat count as one together, rows that many repeat lose their place."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from strategies.rules import PRE_RULES, RoundContext, require_count, require_number, require_users
from strategies.screened import only

_MAD = 1.4826  # times the median absolute deviation: the standard deviation of a normal sample


@PRE_RULES.register("collusion-screening")
@dataclass(frozen=True)
class CollusionScreening:
    """A row that at least ``others`` rows repeat is divided by one more than their number, so that they count as one
    row together; a row that as many as ``crowd`` of the round repeat is left out.  O(K²·P).

    Two rows resemble each other where their cosine is above ``least`` and above the round's median, over users, of the
    cosine with the ``others``-th most similar row, by ``bound`` robust standard deviations (1.4826 MAD), or above
    ``most``, since colluders who make many honest rows have likenesses move that median. They repeat
    each other where also the sets of rows that they resemble, themselves included, have ``overlap`` of their union in
    common: a sum of honest rows resembles each of these, and they do not resemble each other. One user's update is
    mostly its own: two honest users seldom resemble each other, colluders who send one wish do. Who hides the wish in
    noise of its own passes, with as much less of it. Colluders who copy honest rows to have them taken for theirs lose
    their own rows with them, and a crowd of c rows removes at most (c + 1) / overlap - c others. Where more than half
    of a round is repeated, rows resemble each other for another reason, such as a first round, and all stay as they
    are. Needs more users than ``others``.
    """

    others: int = 3
    crowd: float = 0.08
    least: float = 0.4
    most: float = 0.9
    bound: float = 2.5
    overlap: float = 0.8

    source = "fedquilt, after FoolsGold (Fung et al. 2020, arXiv:1808.04866), within one round"
    cost = "K²·P"
    rejects = True

    def __post_init__(self) -> None:
        require_count("others", self.others, least=1)
        require_number("least", self.least)
        require_number("most", self.most)
        for name in ("crowd", "overlap"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} must be above 0 and at most 1, got {getattr(self, name)!r}")
        require_number("bound", self.bound)

    def __call__(
        self, updates_KP: torch.Tensor, weights_K: torch.Tensor, context: RoundContext
    ) -> tuple[torch.Tensor, torch.Tensor, RoundContext]:
        k = require_users(self, updates_KP)
        repeats_K = self._repeats(updates_KP)
        if not 0 < 2 * int((repeats_K > 0).sum()) <= k:
            return updates_KP, weights_K, context
        kept = torch.nonzero(repeats_K < self.crowd * k).flatten()
        rows_KP, weights, seen = only(kept, updates_KP, weights_K, context)
        return rows_KP / (1 + repeats_K[kept])[:, None], weights, seen

    def _repeats(self, updates_KP: torch.Tensor) -> torch.Tensor:
        """int [K]: by how many rows each is repeated, 0 for fewer than ``others``. Rows of zeros resemble nothing."""
        if len(updates_KP) <= self.others:
            return torch.zeros(len(updates_KP), dtype=torch.int64)
        units_KP = torch.nn.functional.normalize(updates_KP, dim=1)
        alike_KK = (units_KP @ units_KP.T).fill_diagonal_(-2)
        alike_K = alike_KK.topk(self.others, dim=1).values[:, -1]
        middle = alike_K.quantile(0.5)
        spread = _MAD * (alike_K - middle).abs().quantile(0.5)
        resembles_KK = alike_KK > torch.clamp(middle + self.bound * spread, min=self.least, max=self.most)
        some = torch.nonzero(resembles_KK.sum(dim=1) >= self.others).flatten()
        repeats_K = torch.zeros(len(updates_KP), dtype=torch.int64)
        repeats_K[some] = self._repeated(resembles_KK[some], some)
        return torch.where(repeats_K >= self.others, repeats_K, 0)

    def _repeated(self, resembles_SK: torch.Tensor, some: torch.Tensor) -> torch.Tensor:
        """int [S]: how many rows each of ``some`` repeats. Rows that resemble too few are in nobody's crowd."""
        resembles_SK[torch.arange(len(some)), some] = True
        sets_SK = resembles_SK.to(torch.float32)
        both_SS, sizes_S = sets_SK @ sets_SK.T, sets_SK.sum(dim=1)
        share_SS = both_SS / (sizes_S[:, None] + sizes_S - both_SS)
        return (resembles_SK[:, some] & (share_SS >= self.overlap)).sum(dim=1) - 1
