"""DP-SGD for the cloud's item encoder and kernel (Abadi et al. 2016, arXiv:1607.00133), on whole users' clicks.

A record is all that the cloud holds of one user, whose loss is a scalar; its gradient with respect to every parameter
comes from ``vmap`` over users (Opacus's hooks would take the catalogue's items for records here, as the encoder's batch
is the catalogue). Opacus clips and adds up; the noise is that of the ledger's events, one a step, made by the same
gate as a federation's rounds. No epoch is chosen by validation clicks, and there is no dropout.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from fedquilt.config import Config
from fedquilt.errors import PrivacyError
from fedquilt.graphs.cohorts import MIN_CLICKS, CohortBuilder
from fedquilt.privacy.accountants import ACCOUNTANTS, compose
from fedquilt.privacy.events import Deviation, GaussianRelease, Poisson, RunOpened, ids_hash
from fedquilt.privacy.filter import Budget, PrivacyFilter
from fedquilt.privacy.gate import Gate
from fedquilt.privacy.keys import kept_secret, show_cohorts
from fedquilt.privacy.ledger import Ledger
from fedquilt.privacy.mechanisms import noised
from fedquilt.privacy.plan import delta_for, plan_noise
from fedquilt.privacy.population import PopulationBudget
from fedquilt.privacy.randomness import Simulated, Source, commitment
from fedquilt.privacy.samplers import Drawn, SamplingPlan
from fedquilt.seeds import key_for
from fedquilt.types import Cohort
from models.cloud_model import CloudModel
from models.kernel import Graphs, KernelWeights
from models.losses import Examples, softmax_loss

CLOUD_LEDGER, CLOUD_KEY = "cloud-privacy.sqlite", "cloud-privacy.key"
_AT_ONCE = 32  # users whose gradients are held together
_GRAPH = (
    "outside the guarantee: the co-click graph that the cloud's model reads and ships was counted from its clicks"
    " without noise; cloud_privacy.graph takes a private one"
)


def require_cloud_privacy(config: Config) -> None:
    """PrivacyError for settings that contradict each other."""
    section = config.cloud_privacy
    if section.noise_multiplier and section.epsilon:
        raise PrivacyError("cloud_privacy.noise_multiplier and cloud_privacy.epsilon: give one, the other follows")
    if section.on and config.privacy.population and not config.privacy.delta:
        raise PrivacyError(
            "cloud_privacy with privacy.population: the cloud's training and the rounds spend from one budget at one"
            " delta, and their numbers of users differ: set privacy.delta"
        )
    if section.on and not config.cloud.epochs:
        raise PrivacyError("cloud_privacy with cloud.epochs = 0: nothing is trained, so no noise is needed")


@dataclass
class PrivateTrainer:
    """Poisson batches of ``config.cloud.batch_size`` users on average, as many steps as ``cloud.epochs`` take.

    ``folder`` holds the ledger; training that was killed is made again from the start, with the same bytes, for which
    nothing is charged twice.
    """

    config: Config
    model: CloudModel
    builder: CohortBuilder
    folder: Path
    users_U: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        require_cloud_privacy(self.config)
        self.users_U = np.flatnonzero(self.builder.counts_U >= MIN_CLICKS)
        if not len(self.users_U):
            raise PrivacyError(f"nobody has {MIN_CLICKS} clicks in the cloud: there is nothing to train on")
        self.model.eval()
        sparse = self.model.get_buffer("neighbours")
        self.model.register_buffer("neighbours", sparse.to_dense())  # vmap goes through no sparse matrix
        self.loss = _UserLoss(self.model)
        self.parameters: dict[str, Any] = dict(self.loss.named_parameters())
        self.optimizer = _dp_optimizer(self.config, self.parameters.values(), self.batch)

    @property
    def batch(self) -> int:
        return min(self.config.cloud.batch_size, len(self.users_U))

    @property
    def steps(self) -> int:
        return self.config.cloud.epochs * math.ceil(len(self.users_U) / self.batch)

    def run(self) -> Iterator[dict[str, Any]]:
        """A record an epoch: what is spent so far. No loss: no noise covers it."""
        source = self._source()
        plan = SamplingPlan(Poisson(self.batch / len(self.users_U)), self.users_U, source)
        gate, opening = self._opened(plan)
        each = self.steps // self.config.cloud.epochs
        for step in range(1, self.steps + 1):
            self._step(plan.draw(step), gate, opening, source)
            if step % each == 0:
                spent = ACCOUNTANTS["rdp"].epsilon(compose(gate.ledger.events()).counts, opening.delta)
                yield {"kind": "cloud", "epoch": step // each, "epsilon": spent}
        gate.ledger.close()

    def weights(self) -> KernelWeights:
        with torch.no_grad():
            return self.model.weights()

    def clipped_sum(self, users_K: np.ndarray, step: int) -> np.ndarray:
        """float64 [P]: Σ over users of their gradient, each clipped to the clipping norm. No noise yet.

        A gradient that is not finite counts as zeros: to stop for it would tell of its user.
        """
        total_P = np.zeros(sum(parameter.numel() for parameter in self.parameters.values()))
        for start in range(0, len(users_K), _AT_ONCE):
            cohort = self._cohort(users_K[start : start + _AT_ONCE], step)
            total_P += self._clipped(cohort)
        return total_P

    # --- a step ---

    def _step(self, drawn: Drawn, gate: Gate, opening: RunOpened, source: Source) -> None:
        total_P = self.clipped_sum(drawn.cohort_K, drawn.round_)
        event = drawn.release(
            GaussianRelease, opening.run, opening.noise_multiplier, opening.clipping_norm, randomness=source.kind
        )
        std, context = event.noise_multiplier * event.clipping_norm, f"{event.run}/{event.round_}/{event.kind}"
        made_P = gate.release(
            event, lambda _: noised(total_P, std, source, context) / event.expected_cohort, drawn.cohort_K
        )
        self._descend(torch.from_numpy(made_P.astype(np.float32)))

    def _cohort(self, users_K: np.ndarray, step: int) -> Cohort:
        return self.builder.training_cohort(users_K, step, key_for(self.config.seed, use="cloud-moments"))

    def _clipped(self, cohort: Cohort) -> np.ndarray:
        gradients = _finite_users(_user_gradients(self.loss, self.parameters, cohort))
        for name, parameter in self.parameters.items():  # where Opacus looks for them
            parameter.grad_sample, parameter.summed_grad = gradients[name], None
        self.optimizer.clip_and_accumulate()
        sums = [parameter.summed_grad.reshape(-1) for parameter in self.parameters.values()]
        self.optimizer.zero_grad()
        return torch.cat(sums).numpy().astype(np.float64)

    def _descend(self, mean_P: Tensor) -> None:
        sizes = [parameter.numel() for parameter in self.parameters.values()]
        for parameter, part in zip(self.parameters.values(), mean_P.split(sizes), strict=True):
            parameter.grad = part.view_as(parameter).clone()
        self.optimizer.original_optimizer.step()
        self.optimizer.original_optimizer.zero_grad()
        if not all(torch.isfinite(parameter).all() for parameter in self.parameters.values()):
            raise PrivacyError(  # a function of what was released, so it tells nothing more
                "the noised steps left a model that is not finite: lower cloud.learning_rate or the noise"
            )

    # --- the ledger ---

    def _source(self) -> Source:
        if self.config.privacy.randomness == "simulated":
            return Simulated(self.config.seed)
        secret = kept_secret(self.folder / CLOUD_KEY, new=True)
        show_cohorts(self.folder / CLOUD_KEY, secret)
        return secret

    def _opened(self, plan: SamplingPlan) -> tuple[Gate, RunOpened]:
        path, claim = self.folder / CLOUD_LEDGER, self._claim(plan)
        ledger = Ledger.open(path) if path.exists() else Ledger.create(path)
        begun = [event for event in ledger.events() if isinstance(event, RunOpened)]
        if begun and begun[0] != claim:
            raise PrivacyError(f"{path} was begun with another key, data or configuration: nothing is trained")
        budget = claim.budget_epsilon
        limits = [] if budget is None else [PrivacyFilter(Budget(budget, claim.delta, claim.population, "cloud"),
                                                          "rdp", ledger.events())]  # fmt: skip
        if not begun:
            ledger.append(claim, self.users_U)
            if not self.config.cloud_privacy.graph:
                ledger.append(Deviation(claim.run, 0, _GRAPH))
        return Gate(ledger, limits, population=self._population(ledger, claim)), claim

    def _population(self, ledger: Ledger, claim: RunOpened) -> PopulationBudget | None:
        """What the steps spend, the rounds of runs over these users cannot; by the delta that all of them share."""
        privacy = self.config.privacy
        if not privacy.population:
            return None
        folder, epsilon = Path(privacy.population), privacy.population_epsilon
        shared = PopulationBudget.open(folder, epsilon, privacy.delta, self.users_U, ledger.events())
        ledger.append(shared.seen(claim.run, 0))
        return shared

    def _claim(self, plan: SamplingPlan) -> RunOpened:
        section, users = self.config.cloud_privacy, len(self.users_U)
        delta = delta_for(section.delta or None, users)
        planned = (
            section.noise_multiplier
            or plan_noise(section.epsilon, plan.sampler, self.steps, users, delta).noise_multiplier
        )
        return RunOpened(
            run=f"cloud-{self.config.name}-{self.config.hash()}",
            round_=0,
            population=users,
            population_hash=ids_hash(self.users_U),
            sampler=plan.sampler,
            noise_multiplier=planned,
            clipping_norm=section.clipping_norm,
            expected_cohort=plan.expected_cohort,
            delta=delta,
            budget_epsilon=section.epsilon or None,
            randomness=plan.source.kind,
            sampling_commitment=commitment(plan.source),
            config_hash=self.config.hash(),
        )


class _UserLoss(nn.Module):
    """One user's mean loss over targets, from tensors without the user axis."""

    def __init__(self, model: CloudModel):
        super().__init__()
        self.model = model

    def forward(self, *parts: Tensor) -> Tensor:
        nodes, recency, clicked, neighbour, adjacency, targets, mask, seen = (part[None] for part in parts)
        graphs = Graphs(nodes, recency, clicked, neighbour, adjacency[0])
        return softmax_loss(self.model.weights(), Examples(graphs, targets, mask, seen, None))[0]


def _user_gradients(loss: _UserLoss, parameters: Mapping[str, Tensor], cohort: Cohort) -> dict[str, Tensor]:
    """{name: [U, *shape]}: of each user's own loss."""
    examples = Examples.of(cohort, loss.model.item_bias.numel())
    graphs = examples.graphs
    num_users, num_graphs, num_nodes = graphs.recency.shape
    assert examples.seen is not None  # moments of the cloud have no drawn negatives
    parts = (
        graphs.nodes, graphs.recency, graphs.clicked, graphs.neighbour,
        graphs.adjacency.view(num_users, num_graphs, num_nodes, num_nodes),
        examples.targets, examples.target_mask, examples.seen,
    )  # fmt: skip
    fixed = {name: parameter.detach() for name, parameter in parameters.items()}

    def of_user(values: dict[str, Tensor], *own: Tensor) -> Tensor:
        return functional_call(loss, values, own)

    gradients, _ = vmap(grad_and_value(of_user), in_dims=(None, *(0,) * len(parts)))(fixed, *parts)
    return gradients


def _finite_users(gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Zeros in every parameter for a user of whose gradient any number is not finite: 0 · NaN would be NaN."""
    sound_U = torch.stack([g.flatten(1).isfinite().all(dim=1) for g in gradients.values()]).all(dim=0)
    if sound_U.all():
        return dict(gradients)
    return {name: torch.where(sound_U.view(-1, *(1,) * (g.ndim - 1)), g, 0.0) for name, g in gradients.items()}


def _dp_optimizer(config: Config, parameters: Any, batch: int) -> Any:
    """Opacus around Adam, for its clipping only: its noise has no key that a ledger could commit to."""
    from opacus.optimizers import DPOptimizer  # takes a second to import

    adam = torch.optim.Adam(list(parameters), lr=config.cloud.learning_rate, weight_decay=config.cloud.weight_decay)
    return DPOptimizer(
        adam, noise_multiplier=0.0, max_grad_norm=config.cloud_privacy.clipping_norm, expected_batch_size=batch,
        loss_reduction="sum",
    )  # fmt: skip


OnEpoch = Callable[[dict[str, Any]], None]


def fit_privately(trainer: PrivateTrainer, on_epoch: OnEpoch) -> tuple[KernelWeights, list[dict[str, Any]]]:
    history = []
    for record in trainer.run():
        on_epoch(record)
        history.append(record)
    return trainer.weights(), history
