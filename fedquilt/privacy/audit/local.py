"""Canary devices of the local mechanism: each noises a row of its own, and only its own row tells of it.

Any two rows are neighbours, so a coin decides between a direction and its opposite, both of norm C.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from fedquilt.privacy.accountants import ACCOUNTANTS, compose
from fedquilt.privacy.audit import noise
from fedquilt.privacy.audit.scores import Channel, bounds, guess, rehearse, score, settle
from fedquilt.privacy.book import Finding
from fedquilt.privacy.events import LocalRelease
from fedquilt.privacy.mechanisms import local_release
from fedquilt.privacy.randomness import Source


def audit_local(
    event: LocalRelease,
    rounds: int,
    devices: int,
    num_parameters: int,
    source: Source,
    generator: np.random.Generator,
    delta: float,
    confidence: float = 0.95,
) -> dict[str, Any]:
    """``rounds`` releases of ``devices`` canaries through ``local_release``, as ``event`` says. -> facts, plain values.

    ``upper`` is what one device spends by its events.
    """
    in_M = generator.random(devices) < 0.5
    signs_MP = generator.choice([-1.0, 1.0], (devices, num_parameters))
    unit_MP = signs_MP / np.sqrt(num_parameters)
    sent_MP = np.where(in_M, 1.0, -1.0)[:, None] * event.clipping_norm * unit_MP
    std = event.noise_multiplier * event.clipping_norm
    events = [
        [replace(event, client_id=client, round_=round_) for client in range(devices)]
        for round_ in range(1, rounds + 1)
    ]
    loud_MP = (10 * sent_MP).astype(np.float32)  # to clip it is the mechanism's part
    released_TMP = np.stack(
        [[local_release(loud_MP[m], dated[m], source) for m in range(devices)] for dated in events]
    ).astype(np.float64)
    left_KP = (released_TMP - sent_MP).reshape(-1, num_parameters)
    channels = [Channel(1.0, max(std, 1e-9), event.clipping_norm, -event.clipping_norm)] * rounds
    rule = settle(*rehearse(channels, generator), devices, delta)
    scores_M = score(channels, (released_TMP * unit_MP).sum(axis=2))
    lower = bounds(rule, scores_M, in_M, delta, confidence, gaussian=True)
    counts = guess(rule, scores_M, in_M)
    upper = ACCOUNTANTS["rdp"].epsilon(compose([dated[0] for dated in events]).counts, delta)
    findings = list(noise.complaints(left_KP, [std] * len(left_KP)))
    if lower["one-run"] > upper:
        findings.append(Finding("bound", f"one-run: epsilon is at least {lower['one-run']:.4g}, not {upper:.4g}"))
    return {
        "lower": lower["one-run"],
        "upper": upper,
        "lower_by_method": lower,
        "guesses": counts.guesses,
        "correct": counts.correct,
        "findings": [f"{finding.kind}: {finding.text}" for finding in findings],
        "holds": not findings,
    }
