"""What the cloud promises the devices of a round, and what they hold it to: travels with every order to train."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import Literal

from fedquilt.errors import PrivacyError
from fedquilt.privacy.events import canonical
from fedquilt.privacy.field_checks import Randomness, require_known
from fedquilt.privacy.ledger import Head

WITHIN = "within-clipping-norm"  # metric of adaptive rounds: 1 where a row was no longer than the clipping norm
MODES = ("central", "local", "distributed", "dp-ftrl")


@dataclass(frozen=True)
class Terms:
    """``noise_multiplier``: std / clipping_norm of all the noise that covers one user's row in this round.

    ``run_head``: "number:hash", how far the cloud's ledger has come. ``shares``: users asked in a distributed round,
    who share the noise between them. ``adaptive``: devices say whether their rows were within the clipping norm.
    """

    run: str
    mode: str
    clipping_norm: float
    noise_multiplier: float
    delta: float
    run_head: str
    randomness: Randomness = "simulated"
    shares: int = 0
    dropout_margin: float = 0.0
    noise: Literal["gaussian", "discrete-gaussian", "skellam"] = "gaussian"
    adaptive: bool = False

    def __post_init__(self) -> None:
        for name in ("clipping_norm", "noise_multiplier", "delta", "randomness"):
            require_known(name, getattr(self, name))
        if self.mode not in MODES:
            raise PrivacyError(f"terms of mode {self.mode!r}; known: {', '.join(MODES)}")
        Head.parse(self.run_head)

    def to_json(self) -> str:
        return canonical(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Terms:
        """PrivacyError for what is not exactly the terms of a round."""
        try:
            tree = json.loads(text)
            if set(tree) != {field.name for field in fields(cls)}:
                raise ValueError(f"fields {sorted(tree)}")
            terms = cls(**tree)
            if terms.to_json() != text or not all(isinstance(tree[n], str) for n in ("run", "mode", "run_head")):
                raise ValueError("not in canonical form")
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise PrivacyError(f"the order's privacy terms cannot be read: {error}") from None
        return terms
