"""Mean of the middle half of every coordinate's values."""

from dataclasses import dataclass


@dataclass(frozen=True)
class MiddleHalf:
    """Drops the largest and the smallest ``share`` of the values of every coordinate. O(K log K · P)."""

    share: float = 0.25

    source = "the interquartile mean"
    cost = "K log K · P"
    sensitivity = None  # unproven: central differential privacy refuses it
    translation = scale = True  # rule(a X + c) = a rule(X) + c

    def __post_init__(self):
        if not 0 <= self.share < 0.5:
            raise ValueError(f"share must be at least 0 and below 0.5, got {self.share}")

    @property
    def breakdown(self):
        return self.share

    def tolerates(self, num_users):
        return int(self.share * num_users)

    def __call__(self, updates_KP, weights_K, state):
        dropped = self.tolerates(len(updates_KP))
        kept_KP = updates_KP.sort(dim=0).values[dropped : len(updates_KP) - dropped]
        return kept_KP.mean(dim=0)
