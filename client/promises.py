"""What a device holds an order's privacy terms to: its deployment, and what no order may say to somebody's device."""

from __future__ import annotations

import numpy as np

from client.device_ledger import device_event, epsilon_once
from fedquilt.config import Config
from fedquilt.errors import PrivacyError
from fedquilt.privacy.settings import PrivacyConfig, why_no_norms
from fedquilt.privacy.terms import Terms

OWN_NOISE = ("local", "distributed")  # modes in which the device itself adds noise, of the size that an order says
_NOBODY = np.empty(0, np.int64)
_LARGEST_DELTA = 0.5  # at which one round is held to the deployed epsilon: 1/N of the smallest population


def require_terms(terms: Terms, privacy: PrivacyConfig, own: bool) -> None:
    """Of any order. PrivacyError where the noise would be another kind than deployed, or one that the cloud knows.

    ``own``: the node has a folder of its own (``device-dir``), so it is somebody's device and no simulation.
    """
    if terms.mode != privacy.mode:
        raise PrivacyError(
            f"the order is for privacy mode {terms.mode!r}, the deployment for {privacy.mode!r}: refused"
        )
    if terms.randomness != privacy.randomness:
        raise PrivacyError(
            f"the order is for {terms.randomness} noise, the deployment for {privacy.randomness}: refused"
        )
    if own and terms.randomness != "secret":
        raise PrivacyError(
            "the order is for noise from the run's seed, which the cloud knows and could take off again. This node has"
            " a device-dir, so it is somebody's device: the run needs privacy.randomness = 'secret'; nothing is sent"
        )
    if privacy.device_norms and (terms.adaptive or why_no_norms(privacy)):
        raise PrivacyError(f"{why_no_norms(privacy) or 'the clipping norm moves'}: users cannot be charged by norms")
    if terms.mode in OWN_NOISE and not terms.noise_multiplier > 0:
        raise PrivacyError(f"the order is for rows without noise in mode {terms.mode!r}: nothing is sent")
    if terms.mode == "distributed" and terms.dropout_margin < privacy.dropout_margin:
        raise PrivacyError(
            f"the order sizes a share's noise for {terms.dropout_margin:.0%} of dropouts, the deployment for"
            f" {privacy.dropout_margin:.0%}: nothing is sent"
        )


def require_clipping(terms: Terms, config: Config) -> None:
    """Of an order to train. PrivacyError for another clipping norm than deployed, unless ``privacy.quantile`` moves it.

    A row is charged n / (z C): with C of the cloud's own choice it would go out as long as it is, nearly for nothing.
    """
    deployed = config.federation.clipping_norm
    if not config.privacy.quantile and terms.clipping_norm != deployed:
        raise PrivacyError(
            f"the order is for rows of norm {terms.clipping_norm:g}, the deployment for {deployed:g}: nothing is sent"
        )


def require_round_noise(terms: Terms, privacy: PrivacyConfig, dimension: int) -> None:
    """Of an order to train. PrivacyError where the noise is less than deployed.

    Where the deployment names an epsilon, from which the cloud plans the noise for a population that the device does
    not know: one round of noise that the device adds costs no more than all rounds may. In dp-ftrl the terms say what
    a round's part of the whole mechanism is worth, which is no figure of the configuration.
    """
    if terms.mode != "dp-ftrl" and terms.noise_multiplier < privacy.noise_multiplier * (1 - 1e-12):
        raise PrivacyError(
            f"the order is for noise {terms.noise_multiplier:g} times the clipping norm, the deployment for"
            f" {privacy.noise_multiplier:g}: nothing is sent"
        )
    most = max(privacy.epsilon, privacy.budget_epsilon)
    if terms.mode not in OWN_NOISE or privacy.noise_multiplier or not most:
        return
    once = epsilon_once(device_event(terms, 0, _NOBODY, dimension), min(terms.delta, _LARGEST_DELTA))
    if once > most * (1 + 1e-6):
        raise PrivacyError(
            f"one round of the noise in the order ({terms.noise_multiplier:g} times the clipping norm) costs epsilon"
            f" {once:.4g}, the deployment promises {most:g} for all rounds: nothing is sent"
        )
