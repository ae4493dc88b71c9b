"""Evasion by fake clicks: drawn, popular, greedy or by gradient."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from client.attacks.contract import ATTACKS, OWN
from client.attacks.evasion import Device, Prey, clickable, gap, with_click


def first_order_gains(device: Device, prey: Prey, context_L: np.ndarray, start: int) -> np.ndarray:
    """float [I]: by how much the gap would grow, to first order, were the latest click another item than ``start``.

    (x_i - x_start) · d gap / d x of the node that stands for the click.
    """
    context_XL = with_click(context_L, np.array([start]))
    inputs_IF = device.lab.weights.item_vectors.clone().requires_grad_()
    scores_XI = device.scores(device.unscreened(context_XL), inputs_IF)
    (gradient_IF,) = torch.autograd.grad(gap(scores_XI, prey, context_XL).sum(), inputs_IF)
    vectors_IF = device.lab.weights.item_vectors
    return ((vectors_IF - vectors_IF[start]) @ gradient_IF[start]).numpy()


@ATTACKS.register("evasion-clicks")
@dataclass(frozen=True)
class EvasionClicks:
    """Fakes up to ``budget`` clicks in one user's history, one after the other, each the one that helps most.

    ``search``: greedy tries ``candidates`` random items by running the model; gradient takes the ``shortlist`` items of
    the largest first-order gain and runs the model on these; a click that does not help is not faked. popular and
    random click without looking, to compare with.
    """

    search: str = "greedy"
    budget: int = 5
    candidates: int = 64
    shortlist: int = 16
    kind = "inference"
    goal = "promote"
    knows = frozenset({OWN})
    source = "Ebrahimi et al. 2018, HotFlip, arXiv:1712.06751, on clicks; greedy: Zuegner et al. 2018, arXiv:1805.07984"

    def __post_init__(self) -> None:
        if self.search not in ("greedy", "gradient", "popular", "random"):
            raise ValueError(f"search must be greedy, gradient, popular or random, got {self.search!r}")

    def gaps(self, device: Device, prey: Prey, generator: np.random.Generator) -> np.ndarray:
        """float [B + 1]: the gap with 0, 1, ..., ``budget`` fake clicks. > 0 is success."""
        context_L = prey.context_L
        found = [float(device.gaps(context_L[None], prey)[0])]
        for _ in range(self.budget):
            tried_X = self._tried(device, prey, context_L, generator)
            contexts_XL = with_click(context_L, tried_X)
            gaps_X = device.gaps(contexts_XL, prey)
            best = int(np.argmax(gaps_X))
            if self.search in ("greedy", "gradient") and gaps_X[best] <= found[-1]:
                found.append(found[-1])
                continue
            context_L = contexts_XL[best]
            found.append(float(gaps_X[best]))
        return np.array(found)

    def _tried(self, device: Device, prey: Prey, context_L: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        free = np.flatnonzero(clickable(context_L, prey))
        if self.search == "popular":
            return free[np.argsort(-device.lab.popularity_I[free], kind="stable")[:1]]
        if self.search == "random":
            return generator.choice(free, 1)
        if self.search == "gradient":
            gains_I = first_order_gains(device, prey, context_L, int(generator.choice(free)))
            open_X = device.unnoticed(with_click(context_L, free))
            free = free[open_X] if open_X.any() else free
            return free[np.argsort(-gains_I[free], kind="stable")[: self.shortlist]]
        return generator.choice(free, min(self.candidates, len(free)), replace=False)
