"""Attacks on the digits: the reference's six, those that hide, those that know the rule, and those that plan ahead."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from client.attacks.contract import BENIGN, COLLUDERS, OWN, RIVALS, RULE, View, make_attack
from experiments.robustness.digits_world import COLLUDERS as NUM_COLLUDERS
from experiments.robustness.digits_world import HONEST, Attack, Scene
from fedquilt.types import PatchSpec


def _all_send(row: Callable[[Scene], np.ndarray]) -> Attack:
    return lambda scene: np.repeat(row(scene)[None], NUM_COLLUDERS, axis=0)


def _times_mean(factor: float) -> Attack:
    return _all_send(lambda scene: factor * scene.honest_HP.mean(axis=0))


def _alie(z: float) -> Attack:
    """mean - z · std, of the sample as in byzfl."""
    return _all_send(lambda scene: scene.honest_HP.mean(axis=0) - z * scene.honest_HP.std(axis=0, ddof=1))


def _patient(length: float) -> Attack:
    """The honest mean plus one and the same push in every round, so that it answers to the patch as honest rows do.

    Against the honest mean of round 1, ``length`` times the largest mean distance so far of honest rows from theirs.
    """

    def row(scene: Scene) -> np.ndarray:
        mean_P = scene.honest_HP.mean(axis=0)
        far = float(np.linalg.norm(scene.honest_HP - mean_P, axis=1).mean())
        scene.memory["far"] = max(scene.memory.get("far", 0.0), far)
        against_P = scene.memory.setdefault("against", -mean_P / np.linalg.norm(mean_P))
        return mean_P + length * scene.memory["far"] * against_P

    return _all_send(row)


def _of_ours(name: str, **options: Any) -> Attack:
    """An attack of ``client/attacks``."""
    attack = make_attack(name, options)

    def rows(scene: Scene) -> np.ndarray:
        knows = frozenset({OWN, COLLUDERS, BENIGN, RIVALS, RULE})
        view = View(
            round_=scene.round_,
            client_ids_M=np.arange(HONEST, HONEST + NUM_COLLUDERS),
            own_MP=scene.honest_HP[:NUM_COLLUDERS],
            patch_P=np.zeros(scene.honest_HP.shape[1], np.float32),
            spec=PatchSpec((("weights", (scene.honest_HP.shape[1],)),)),
            clipping_norm=np.inf,
            targets_T=np.empty(0, np.int64),
            generator=scene.generator,
            knows=knows,
            memory=scene.memory,
            benign=scene.honest_HP,
            oracle=scene.rule,
            num_cohort=HONEST + NUM_COLLUDERS,
        )
        return attack.rows(view)

    return rows


REFERENCE: Mapping[str, Attack] = {  # in byzfl's definitions
    "sign-flip": _times_mean(-1.0),
    "ipm-0.5": _times_mean(-0.5),
    "ipm-10": _times_mean(-10.0),
    "alie": _alie(1.5),
    "mimic": _all_send(lambda scene: scene.honest_HP[0]),
    "label-flip": _all_send(lambda scene: scene.flipped_HP.mean(axis=0)),
}
HIDDEN: Mapping[str, Attack] = {
    **{f"min-max-{way}": _of_ours("min-max", direction=way) for way in ("std", "sign", "unit")},
    **{f"min-sum-{way}": _of_ours("min-sum", direction=way) for way in ("std", "sign", "unit")},
    "mimic-furthest": _of_ours("mimic"),
    "alie-up": _alie(-1.5),
    "alie-3": _alie(3.0),
}
ADAPTIVE: Mapping[str, Attack] = {"adaptive": _of_ours("adaptive", inner="ipm", refine=1)}
PATIENT: Mapping[str, Attack] = {f"patient-{length:g}": _patient(length) for length in (0.5, 1.0, 2.0)}
ATTACKS: Mapping[str, Attack | None] = {"none": None, **REFERENCE, **HIDDEN, **ADAPTIVE, **PATIENT}
