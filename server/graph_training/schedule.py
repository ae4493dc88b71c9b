"""What changes from step to step: the learning rate, and how many hard negatives a pair has."""

from __future__ import annotations

from fedquilt.config import GraphModelConfig


def learning_rate_at(config: GraphModelConfig, step: int, steps_per_epoch: int) -> float:
    """Rate of step 0, 1, ...: linear from rate / S to rate over the S steps of epoch 1, then rate · decay^(t / S).

    t counts steps after epoch 1, from 1. Source: PinSage, section 3.3, after the warm-up of Goyal et al. 2017.
    """
    after = step + 1 - steps_per_epoch
    if after <= 0:
        return config.learning_rate * (step + 1) / steps_per_epoch
    return config.learning_rate * config.decay ** (after / steps_per_epoch)


def hard_negatives_at(config: GraphModelConfig, epoch: int) -> int:
    """Hard negatives a pair in epoch 1, 2, ...: none in the first, one more in each that follows, up to the limit.

    Without the curriculum: the limit, in every epoch.
    """
    if not config.hard_negatives:
        return 0
    return min(epoch - 1, config.max_hard_negatives) if config.curriculum else config.max_hard_negatives
