"""Real rounds of a run's own mechanism with canaries among the users, and what left the cloud in them.

The auditor sees what leaves: the patches that devices are sent, and who is asked. The server optimizer is a plain step
here, so that successive patches differ by what was released; whatever follows a release costs no privacy.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from flwr.app import Message
from flwr.clientapp import ClientApp

from fedquilt import wire
from fedquilt.config import Config, parse
from fedquilt.privacy import events as ev
from fedquilt.privacy.audit import noise
from fedquilt.privacy.audit.canaries import Canaries, plant
from fedquilt.privacy.audit.scores import Channel
from fedquilt.privacy.book import Finding, ledger_path, read_book
from fedquilt.privacy.clipping import clip_rows
from fedquilt.privacy.randomness import Simulated
from fedquilt.privacy.verify import verify
from fedquilt.runs import RunFolder
from fedquilt.seeds import generator_for
from fedquilt.types import PatchSpec
from server.in_process import InProcessGrid
from server.loop import run_federation
from server.task import Deployment
from strategies.central import require_private

MakeApp = Callable[[Canaries, np.ndarray], ClientApp]
"""(canaries, population) -> the app of devices that host them; `client` makes it, which this room does not import."""
MakeSpec = Callable[[int], PatchSpec]


class WatchedGrid(InProcessGrid):
    """Remembers whom every round asked and which patch they were sent."""

    def __init__(self, client_app: ClientApp, num_supernodes: int, canaries: Canaries):
        super().__init__(client_app, num_supernodes)
        self.canaries = canaries
        self.patches: dict[int, np.ndarray] = {}
        self.asked: dict[int, np.ndarray] = {}

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        messages = list(messages)
        for message in messages:
            if message.metadata.message_type == wire.TRAIN:
                order = wire.read_train_order(message.content)
                self.patches[order.round_] = order.patch_P
                before_K = self.asked.get(order.round_, order.client_ids_K[:0])
                self.asked[order.round_] = np.union1d(before_K, order.client_ids_K)
        return super().send_and_receive(messages, timeout=timeout)


@dataclass(frozen=True)
class Look:
    """Σ over rounds (first, last] of what was released, times the expected cohort: float64 [P].

    By the events of these rounds: ``std`` of the noise in it, and ``loud``, the norm of a canary's row in it.
    """

    first: int
    last: int
    total_P: np.ndarray
    std: float
    loud: float


@dataclass(frozen=True)
class Observed:
    """One federation with canaries, from outside, beside what its ledger says.

    ``channels``: of T releases, what each tells of a canary by the claim; ``lengths_TM``: along each one's direction
    (NaN: not in it). ``left_RP``: R releases less what canaries sent, and ``std_R`` of the noise by their events.
    """

    canaries: Canaries
    channels: tuple[Channel, ...]
    lengths_TM: np.ndarray
    left_RP: np.ndarray
    std_R: tuple[float, ...]
    asked: Mapping[int, np.ndarray]
    events: tuple[ev.Event, ...]
    findings: tuple[Finding, ...]
    of_one: tuple[Channel, ...] = ()  # what one canary is in; all channels, unless set
    gaussian: bool = True  # the noise itself, and so what may be concluded from it

    def unit_noise(self) -> np.ndarray | None:
        """[R, P], standard normal by the claim; None where no noise is claimed."""
        std_R = np.array(self.std_R)
        return None if not std_R.size or std_R.min() <= 0 else self.left_RP / std_R[:, None]


@dataclass(frozen=True)
class Executed:
    """A federation that is over: who watched it, the last patch, and its ledger."""

    config: Config
    canaries: Canaries
    grid: WatchedGrid
    rounds: int
    patch_P: np.ndarray
    events: tuple[ev.Event, ...]
    findings: tuple[Finding, ...]


@dataclass(frozen=True)
class CanaryRounds:
    """What the run was: its configuration as far as privacy goes, and the claim on its ledger."""

    config: Config
    opening: ev.RunOpened
    rounds: int
    num_parameters: int
    make_app: MakeApp
    make_spec: MakeSpec

    def execute(self, seed: int, num_canaries: int, watch: type[WatchedGrid] | None = None) -> Executed:
        """Real rounds on the in-process grid, on a ledger of their own, in a folder that is removed afterwards."""
        population_U = np.arange(self.opening.population)
        opposed = self.opening.neighbours == "replace-one"
        generator = generator_for(seed, use="audit/canaries")
        canaries = plant(num_canaries, population_U, self.num_parameters, generator, opposed)
        config = canary_config(self.config, self.opening, self.rounds, seed)
        app = self.make_app(canaries, population_U)
        grid = (watch or WatchedGrid)(app, config.federation.num_supernodes, canaries)
        initial_P = np.zeros(self.num_parameters, np.float32)
        deployment = Deployment(self.make_spec(self.num_parameters), initial_P, {"none": np.zeros(1, np.float32)})
        with tempfile.TemporaryDirectory(prefix="fedquilt-audit-") as folder:
            run = RunFolder.create(folder, config)
            result = run_federation(grid, config, deployment, run)
            verdict = verify(run.path, sampling_source=_source(config), accountants=("rdp",))
            book, _ = read_book(ledger_path(run.path))
        events = tuple(book.events)
        findings = (*verdict.findings, *_asked_as_recorded(grid.asked, events))
        return Executed(config, canaries, grid, result.rounds, result.patch_P, events, findings)

    def federate(self, seed: int, num_canaries: int) -> Observed:
        """With noise on sums: releases are seen in the patches."""
        done = self.execute(seed, num_canaries)
        canaries, asked = done.canaries, done.grid.asked
        patches = patches_between(done.grid.patches, done.rounds, done.patch_P)
        looks = [_look(*pair, self.opening.expected_cohort, done) for pair in pairwise(patches)]
        total_TP, std_T = np.stack([look.total_P for look in looks]), tuple(look.std for look in looks)
        sent_TP = np.stack([sent_in(look, canaries, asked) for look in looks])
        rate = self.opening.sampler.rate
        return Observed(
            canaries,
            tuple(Channel(rate, max(k.std, TINY), k.loud, -k.loud if canaries.opposed else 0.0) for k in looks),
            np.stack([canaries.along(look.total_P) for look in looks]),
            total_TP - sent_TP,
            std_T,
            asked,
            done.events,
            (
                *done.findings,
                *noise.gain_complaints(total_TP, sent_TP, std_T),
                *noise.complaints(total_TP - sent_TP, std_T),
            ),
        )


TINY = 1e-9  # std of a claim of no noise, which likelihood ratios cannot be made of


def charged_to_nobody(config: Config, opening: ev.RunOpened) -> dict[str, Any]:
    """The ``[privacy]`` of federations that an audit makes: the run's mechanism as it claims it, and no budget."""
    return config.privacy.model_dump() | {
        "population": "",
        "population_epsilon": 0.0,
        "signing_key": "",
        "device_epsilon": 0.0,
        "device_delta": 0.0,
        "device_norms": False,
        "epsilon": 0.0,
        "budget_epsilon": 0.0,
        "noise_multiplier": opening.noise_multiplier,
        "delta": opening.delta,
    }


def canary_config(config: Config, opening: ev.RunOpened, rounds: int, seed: int) -> Config:
    """Sampler, noise, clipping, rules, nodes and wire of the run; nothing that follows a release or judges a model."""
    federation = config.federation.model_dump() | {
        "rounds": rounds,
        "evaluate_every": 0,
        "checkpoint_every": rounds,
        "clipping_norm": opening.clipping_norm,
    }
    privacy = charged_to_nobody(config, opening)
    optimizer = {"name": "sgd", "learning_rate": 1.0, "decay": 0.0}
    return parse(
        {"name": "audit", "seed": seed, "federation": federation, "privacy": privacy, "server_optimizer": optimizer}
    )


def _source(config: Config) -> Simulated | None:
    return Simulated(config.seed) if config.privacy.randomness == "simulated" else None


Dated = tuple[int, np.ndarray]


def patches_between(sent: Mapping[int, np.ndarray], rounds: int, last_P: np.ndarray) -> list[Dated]:
    """(round, patch after it). A round that asked nobody shows its noise in the next patch that anyone is sent."""
    between = [(round_ - 1, sent[round_]) for round_ in sorted(sent) if round_ > 1]
    return [(0, np.zeros_like(last_P)), *between, (rounds, last_P)]


def _look(before: Dated, after: Dated, expected: float, done: Executed) -> Look:
    inside = [e for e in done.events if isinstance(e, ev.GaussianRelease) and before[0] < e.round_ <= after[0]]
    total_P = (after[1].astype(np.float64) - before[1]) * expected
    std = float(np.sqrt(sum((event.noise_multiplier * event.clipping_norm) ** 2 for event in inside)))
    return Look(before[0], after[0], total_P, std, loudness(done.config, inside[0].clipping_norm, done.canaries))


def sent_in(look: Look, canaries: Canaries, asked: Mapping[int, np.ndarray]) -> np.ndarray:
    """What the canaries of its cohorts can have added, [P]: everything but the noise, if all is as it should be."""
    asked_K = [asked[t] for t in range(look.first + 1, look.last + 1) if t in asked]
    return canaries.total(np.concatenate([np.empty(0, np.int64), *asked_K]), look.loud)


def _asked_as_recorded(asked: Mapping[int, np.ndarray], events: Sequence[ev.Event]) -> list[Finding]:
    """Whom the cloud asked, on the wire, and whom the ledger says that it drew."""
    drawn = (ev.GaussianRelease, ev.LocalRound)
    recorded = {event.round_: event.cohort_hash for event in events if isinstance(event, drawn)}
    nobody = ev.ids_hash(np.empty(0, np.int64))
    wrong = [t for t, digest in recorded.items() if ev.ids_hash(asked[t]) != digest] if len(asked) else []
    wrong = [t for t in wrong if t in asked or recorded[t] != nobody]
    return [Finding("sampling", f"round {t} asked other users than the ledger records") for t in wrong[:1]]


def loudness(config: Config, clipping_norm: float, canaries: Canaries) -> float:
    """Norm of a canary's row after all that the run's rules do to a row of their own."""
    inside = replace(canaries, in_M=np.ones(len(canaries), bool))
    row = torch.from_numpy(clip_rows(inside.rows(inside.ids_M[:1], 2 * clipping_norm), clipping_norm)[0])
    for own_rows in require_private(config):
        row = own_rows(row)
    return float(np.linalg.norm(clip_rows(row.numpy(), clipping_norm)[0].astype(np.float64)))
