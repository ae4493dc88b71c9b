"""Sign flip."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from client.attacks.contract import ATTACKS, OWN, View
from client.attacks.spared import spared


@ATTACKS.register("sign-flip")
@dataclass(frozen=True)
class SignFlip:
    """Sends the negative of its own honest update: -scale · g; tensors of the patch in ``spare`` stay as they are.

    Each attacker on its own. Under a clip to C a scale > 1 only helps rows that are shorter than C / scale.
    """

    scale: float = 1.0
    spare: Sequence[str] = ()
    kind = "updates"
    goal = "untargeted"
    knows = frozenset({OWN})
    source = "Li et al. 2019, RSA, arXiv:1811.03761"

    def rows(self, view: View) -> np.ndarray:
        return spared(view, (-self.scale * view.own_MP).astype(np.float32), self.spare)
