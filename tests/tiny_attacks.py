"""A town of 40 users and 20 items for tests of attacks: random kernel, one round of honest rows, a plain mean.

What an attack does is read from the patch after one step of the plain mean: how far the target is from the users' top
5, and the users' loss.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from tiny_recommender import ITEMS, cohorts_of, log_of, meta_config, random_patch, random_weights, spec_of

from client.attacks.contract import POPULARITY, PUBLIC, Clicks, View, make_attack
from client.attacks.laboratory import Laboratory, kth_best
from client.attacks.logs import histories_of, replaced
from fedquilt.graphs.log import InteractionLog
from fedquilt.privacy.clipping import clip_rows
from models.losses import Examples, softmax_loss
from models.personalise import Personaliser

USERS, MALICIOUS, CLIP, STEP = 40, 12, 0.5, 4.0
PARTS = ("bottleneck", "item-bias", "item-low-rank")


@dataclass(frozen=True)
class Town:
    seed: int = 0
    targets_T: np.ndarray = field(default_factory=lambda: np.array([0]))
    trigger_S: np.ndarray = field(default_factory=lambda: np.array([6, 7, 17]))

    @cached_property
    def log(self) -> InteractionLog:
        """Even users like items 0 to 9, odd ones 10 to 19, the first of each ten most; one click in five is stray."""
        rng, histories = np.random.default_rng(self.seed), []
        for user in range(USERS):
            liking = np.where(np.arange(ITEMS) // 10 == user % 2, 1.0, 0.1) / (1 + np.arange(ITEMS) % 10)
            histories.append(rng.choice(ITEMS, rng.integers(6, 9), replace=False, p=liking / liking.sum()).tolist())
        return log_of(histories)

    @property
    def malicious_M(self) -> np.ndarray:
        return np.arange(MALICIOUS)

    @property
    def honest_H(self) -> np.ndarray:
        return np.arange(MALICIOUS, USERS)

    @cached_property
    def lab(self) -> Laboratory:
        weights = random_weights(self.seed)
        builder = cohorts_of(self.log, meta_config())
        return Laboratory(weights, spec_of(PARTS, weights), builder, self.log, self.honest_H)

    @cached_property
    def patch_P(self) -> np.ndarray:
        return random_patch(self.lab.spec, self.seed, std=0.1)

    def rows(self, users: np.ndarray, log: InteractionLog | None = None) -> np.ndarray:
        """Honest training on this log, clipped."""
        cohort = cohorts_of(log or self.log, meta_config()).training_cohort(users, 1, self.seed)
        personaliser = Personaliser(self.lab.weights, self.lab.spec, meta_config(inner_parts=("bottleneck",)))
        nothing = np.zeros((len(users), personaliser.personal_size), np.float32)
        return clip_rows(personaliser.outer_step(cohort, self.patch_P, nothing).updates_UP, CLIP)[0]

    def view(self, attack: Any, **changed: Any) -> View:
        fields: dict[str, Any] = {
            "round_": 1,
            "client_ids_M": self.malicious_M,
            "own_MP": self.rows(self.malicious_M),
            "patch_P": self.patch_P,
            "spec": self.lab.spec,
            "clipping_norm": CLIP,
            "targets_T": self.targets_T,
            "trigger_S": self.trigger_S,
            "generator": np.random.default_rng(self.seed),
            "knows": attack.knows,
            "laboratory": self.lab,
            "num_cohort": USERS,
            "chart_I": self.log.popularity_I if POPULARITY in attack.knows else None,
            "public": self.honest_H if PUBLIC in attack.knows else None,
        }
        return View(**{**fields, **changed})

    def clicks(self, attack: Any) -> Clicks:
        held = histories_of(self.log, self.malicious_M)
        generator = np.random.default_rng(self.seed)
        return Clicks(held, ITEMS, self.targets_T, generator, attack.knows, self.log.popularity_I)

    def forged_rows(self, name: str, options: Mapping[str, Any] | None = None) -> np.ndarray:
        """What the attackers send, by an attack on updates or on clicks."""
        attack = make_attack(name, options)
        if attack.kind == "updates":
            return attack.rows(self.view(attack))
        return self.rows(self.malicious_M, replaced(self.log, attack.histories(self.clicks(attack))))

    def after(self, malicious_rows_MP: np.ndarray | None = None) -> np.ndarray:
        """The patch after one step of the plain mean; None: the attackers are honest."""
        bad = self.rows(self.malicious_M) if malicious_rows_MP is None else malicious_rows_MP
        rows = np.concatenate([clip_rows(np.array(bad, np.float32), CLIP)[0], self.rows(self.honest_H)])
        return (self.patch_P + STEP * rows.mean(0)).astype(np.float32)

    def headway(self, patch_P: np.ndarray, trigger_S: np.ndarray | None = None) -> float:
        """Mean over honest users who have not clicked it of target's score - the 5th best other unseen item's."""
        graphs, seen_UI = self.lab.present(self.honest_H, trigger_S)
        with torch.no_grad():
            scores_UI = self.lab.scores(graphs, self.lab.spec.views(torch.from_numpy(patch_P)))
        target = int(self.targets_T[0])
        fifth_U = kth_best(scores_UI, seen_UI.index_fill(1, torch.tensor([target]), True), 5)
        return float((scores_UI[:, target] - fifth_U)[~seen_UI[:, target]].mean())

    def loss(self, patch_P: np.ndarray) -> float:
        """Honest users' mean loss on moments that no row was trained on."""
        cohort = self.lab.builder.training_cohort(self.honest_H, 99, self.seed)
        shared = Personaliser(self.lab.weights, self.lab.spec, meta_config()).shared(patch_P, len(self.honest_H))
        with torch.no_grad():
            return float(softmax_loss(self.lab.weights, Examples.of(cohort, ITEMS), shared).mean())


def least_wanted(town: Town) -> Town:
    """The same town with the tail item as target that is furthest from the top."""
    tail = (8, 9, 18, 19)
    gaps = [Town(town.seed, np.array([item])).headway(town.patch_P) for item in tail]
    return Town(town.seed, np.array([tail[int(np.argmin(gaps))]]))
