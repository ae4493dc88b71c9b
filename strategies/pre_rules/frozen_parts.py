"""Frozen parts: what updates say of some tensors of the patch is not heard."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fedquilt.errors import ConfigError
from strategies.rules import PRE_RULES, RoundContext, require_spec, require_users


@PRE_RULES.register("frozen-parts")
@dataclass(frozen=True)
class FrozenParts:
    """Zero in every tensor whose name begins with one of ``tensors``, so that it stays as it was.  O(K·P).

    The default are the rows by which items enter users' vectors: a rare item's row there is written by whoever claims
    to hold it, and acts on holders only, which is what a backdoor's trigger needs. MissingContextError without a patch
    spec, ConfigError for a name that the patch does not have.
    """

    tensors: tuple[str, ...] = ("item_in.",)

    source = "fedquilt"
    cost = "K·P"

    def __post_init__(self) -> None:
        object.__setattr__(self, "tensors", tuple(self.tensors))  # TOML has lists

    def __call__(
        self, updates_KP: torch.Tensor, weights_K: torch.Tensor, context: RoundContext
    ) -> tuple[torch.Tensor, torch.Tensor, RoundContext]:
        require_users(self, updates_KP)
        spec = require_spec(self, context)
        out_KP = updates_KP.clone()
        for prefix in self.tensors:
            places = [place for name, place in spec.slices.items() if name.startswith(prefix)]
            if not places:
                raise ConfigError(
                    f"frozen-parts: no tensor of the patch begins with {prefix!r}; it has {list(spec.slices)}"
                )
            for place in places:
                out_KP[:, place] = 0
        return out_KP, weights_K, context
