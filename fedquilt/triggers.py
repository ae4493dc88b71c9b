"""Does a patch hold a trigger? Items whose scores rise abnormally when a few rare items are clicked.

A backdoor ties a target to a small set of items that few honest users hold together. The scan knows neither. It puts
every rare item, alone, as the latest click before ordinary contexts, and compares what the patch changes with what it
changes without that click; common items are put there too, as a control. No user's data is needed: contexts are drawn.

Shapes: R probed items, C control probes, I items.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

THRESHOLD = 4.5  # of ``trigger_scores``; docs/defences.md says how often a clean patch exceeds it
_TINY = 1e-9


@dataclass(frozen=True)
class Suspicion:
    """A target that the scan suspects, its score, and the probed items that raise it most."""

    item: int
    score: float
    trigger: tuple[int, ...]


def activation(raised_RI: np.ndarray, probes_R: np.ndarray) -> np.ndarray:
    """float64 [R, I]: by how much each probe raises each item because of the patch, against what is usual.

    raised_RI: (score under the patch - score before it) with the probe, less the same without it, mean over contexts.
    Less the median over items (a probe that raises everything raises nothing), then less the median over probes (an
    item that any click raises has no trigger). A probe says nothing of itself: 0.
    """
    raised_RI = np.array(raised_RI, np.float64)
    raised_RI -= np.median(raised_RI, axis=1, keepdims=True)
    raised_RI -= np.median(raised_RI, axis=0)
    raised_RI[np.arange(len(probes_R)), probes_R] = 0
    return raised_RI


def trigger_scores(raised_RI: np.ndarray, control_CI: np.ndarray, size: int) -> np.ndarray:
    """float64 [I]: the sum of an item's ``size`` largest activations by rare items, in units of what common items do.

    The unit is the median over items of the same sum over control probes, which honest users do click: a patch that
    they made moves rare clicks less than common ones, one that holds a trigger of rare clicks does not.
    """
    usual = np.median(_largest(control_CI, size))
    return _largest(raised_RI, size) / max(usual, _TINY)


def suspicions(
    raised_RI: np.ndarray,
    control_CI: np.ndarray,
    probes_R: np.ndarray,
    size: int = 4,
    threshold: float = THRESHOLD,
) -> list[Suspicion]:
    """Items above the threshold, the most suspicious first."""
    score_I = trigger_scores(raised_RI, control_CI, size)
    found = np.flatnonzero(score_I > threshold)
    return [
        Suspicion(int(item), float(score_I[item]), tuple(probes_R[np.argsort(-raised_RI[:, item])[:size]].tolist()))
        for item in found[np.argsort(-score_I[found])]
    ]


def _largest(raised_RI: np.ndarray, size: int) -> np.ndarray:
    """float64 [I]."""
    return np.sort(raised_RI, axis=0)[-size:].sum(axis=0)
