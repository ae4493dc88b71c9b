"""The ``[privacy]`` section of a configuration."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class PrivacyConfig(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    mode: Literal["none", "central", "local", "distributed", "dp-ftrl"] = Field(
        "none",
        description="user-level differential privacy by noise: central, on the sum of users' clipped updates; local, on"
        " each device; distributed, a share on each device; dp-ftrl, correlated over rounds, without sampling",
    )
    noise_multiplier: float = Field(
        0.0,
        ge=0,
        allow_inf_nan=False,
        description="std of the noise / federation.clipping_norm, of one row's in local mode; 0 = from epsilon",
    )
    epsilon: float = Field(
        0.0, ge=0, allow_inf_nan=False, description="target over federation.rounds, from which the noise is planned"
    )
    delta: float = Field(0.0, ge=0, lt=1, description="below 1/N for N users; 0 = N^-1.1")
    sampler: Literal["poisson", "fixed", "none", "fixed-order"] = Field(
        "poisson",
        description="poisson: every user by an own coin, federation.cohort_size on average; fixed: exactly that many;"
        " none: all users every round; fixed-order: groups of about that many take turns",
    )
    budget_epsilon: float = Field(
        0.0, ge=0, allow_inf_nan=False, description="a round that would exceed it is not begun; 0 = epsilon, if set"
    )
    randomness: Literal["simulated", "secret"] = Field(
        "simulated", description="simulated: from the run's seed, refused when deployed; secret: a key made for the run"
    )
    quantile: float = Field(
        0.0, ge=0, lt=1, description="central: the clipping norm follows this quantile of users' norms; 0 = it stays"
    )
    quantile_noise: float = Field(
        0.0,
        ge=0,
        allow_inf_nan=False,
        description="std of the noise on the count below the quantile / its bound 1/2; 0 = a tenth of the cohort",
    )
    quantile_rate: float = Field(0.2, gt=0, allow_inf_nan=False, description="how fast the clipping norm follows")
    noise: Literal["skellam", "discrete-gaussian"] = Field("skellam", description="distributed: a share's distribution")
    dropout_margin: float = Field(
        0.1, ge=0, lt=1, description="distributed: share of a round's users who may vanish without lessening the noise"
    )
    correlation: Literal["tree", "banded"] = Field("banded", description="dp-ftrl: how noise is correlated over rounds")
    bands: int = Field(0, ge=0, description="dp-ftrl, banded: rounds that noise spans; 0 = as many as users' turns")
    device_epsilon: float = Field(
        0.0, ge=0, allow_inf_nan=False, description="limit of each user, kept by the device over all runs; 0 = none"
    )
    device_delta: float = Field(0.0, ge=0, lt=1, description="at which devices count device_epsilon; 0 = 1e-6")
    device_norms: bool = Field(
        False, description="central: devices charge users by the norms of what they sent, in place of the clipping norm"
    )
    population: str = Field("", description="folder of the ledger that many runs over one population share")
    population_epsilon: float = Field(
        0.0, ge=0, allow_inf_nan=False, description="what all these runs may spend together; set by the first of them"
    )
    signing_key: str = Field(
        "",
        description="file of a key (`fedquilt privacy keygen`) that signs the head of the run's ledger at every"
        " checkpoint and at the end",
    )


def why_no_norms(privacy: PrivacyConfig) -> str:
    """Why ``device_norms`` is not proven to protect users under these settings; empty where it is."""
    if privacy.mode != "central":
        return f"privacy.device_norms is for mode 'central'; mode {privacy.mode!r} charges the clipping norm"
    if privacy.quantile:
        return "privacy.device_norms takes a clipping norm that stays: set privacy.quantile = 0"
    if privacy.sampler == "fixed":
        return (
            "privacy.device_norms is proven for a user added or removed, which changes who else is drawn in cohorts"
            " of fixed size: set privacy.sampler = 'poisson' or 'none'"
        )
    return ""


_FIRST = ("mode", "noise_multiplier", "epsilon", "delta", "sampler", "budget_epsilon", "randomness")


def unused(config: PrivacyConfig) -> set[str]:
    """Left out of a configuration's hash: where a key lies, and fields that came later and stand at their default."""
    later: dict[str, Any] = {name: field for name, field in PrivacyConfig.model_fields.items() if name not in _FIRST}
    return {"signing_key"} | {name for name, field in later.items() if getattr(config, name) == field.default}
