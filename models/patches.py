"""Patches: the only tensors that are trained on a device and that travel. One function a part; parts are chosen by
name.

A fresh patch changes nothing: what it multiplies by is zero (``up``, ``factors``, biases, deltas), so a federation
starts from the base model. The other factor of a product starts random, or no gradient would flow.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from fedquilt.config import PatchConfig
from fedquilt.errors import ConfigError
from fedquilt.types import PatchSpec
from models.kernel import NUM_LAYERS, KernelWeights

_Shapes = dict[str, tuple[int, ...]]


def _bottleneck(weights: KernelWeights, config: PatchConfig) -> _Shapes:
    shapes: _Shapes = {}
    for layer in range(NUM_LAYERS):
        shapes[f"bottleneck.{layer}.down"] = (weights.dim, config.bottleneck)
        shapes[f"bottleneck.{layer}.up"] = (config.bottleneck, weights.dim)
    return shapes


def _item_bias(weights: KernelWeights, config: PatchConfig) -> _Shapes:
    return {"item_bias": (weights.num_items,)}


def _item_low_rank(weights: KernelWeights, config: PatchConfig) -> _Shapes:
    shapes: _Shapes = {}
    for side in ("item_in", "item_out"):
        shapes[f"{side}.factors"] = (weights.num_items, config.item_rank)
        shapes[f"{side}.basis"] = (config.item_rank, weights.dim)
    return shapes


def _readout(weights: KernelWeights, config: PatchConfig) -> _Shapes:
    return {"readout.pool_logits": tuple(weights.pool_logits.shape), "readout.mix": tuple(weights.mix.shape)}


def _convolution(weights: KernelWeights, config: PatchConfig) -> _Shapes:
    return {f"convolution.{layer}": (weights.dim, weights.dim) for layer in range(NUM_LAYERS)}


PARTS: Mapping[str, Callable[[KernelWeights, PatchConfig], _Shapes]] = {
    "bottleneck": _bottleneck,
    "item-bias": _item_bias,
    "item-low-rank": _item_low_rank,
    "readout": _readout,
    "convolution": _convolution,
}


def patch_spec(weights: KernelWeights, config: PatchConfig) -> PatchSpec:
    """The layout of the configured parts over this kernel. ConfigError for an unknown or repeated part."""
    require_parts(config.parts, "patch.parts")
    return PatchSpec(
        tuple((name, shape) for part in config.parts for name, shape in PARTS[part](weights, config).items())
    )


def names_of(parts: Iterable[str], spec: PatchSpec) -> tuple[str, ...]:
    """Tensor names in ``spec`` that belong to these parts, in the order of the spec."""
    parts = tuple(parts)
    require_parts(parts, "meta.inner_parts")
    prefixes = {"item-bias": ("item_bias",), "item-low-rank": ("item_in.", "item_out.")}
    wanted = tuple(prefix for part in parts for prefix in prefixes.get(part, (f"{part}.",)))
    return tuple(name for name, _ in spec.shapes if name.startswith(wanted))


def initial_patch(spec: PatchSpec, generator: torch.Generator) -> Tensor:
    """float32 [P] that changes nothing; ``down`` and ``basis`` are drawn with variance 1 / fan-in."""
    tensors = []
    for name, shape in spec.shapes:
        random = name.endswith((".down", ".basis"))
        fan_in = shape[0]
        drawn = torch.randn(shape, generator=generator) / math.sqrt(fan_in) if random else torch.zeros(shape)
        tensors.append(drawn.reshape(-1))
    return torch.cat(tensors) if tensors else torch.zeros(0)


def require_inner_parts(inner: Iterable[str], parts: Iterable[str]) -> None:
    """ConfigError for an inner part that is unknown, repeated, or not in the patch."""
    inner, parts = tuple(inner), tuple(parts)
    require_parts(inner, "meta.inner_parts")
    if absent := [part for part in inner if part not in parts]:
        raise ConfigError(
            f"meta.inner_parts names {absent[0]!r}, patch.parts = {list(parts)} has no such part: add it there, or set"
            f" meta.inner_parts to {[part for part in inner if part in parts]}"
        )


def require_parts(parts: Iterable[str], key: str) -> None:
    """ConfigError for an unknown or repeated part; ``key`` is where it was configured."""
    seen: set[str] = set()
    for part in parts:
        if part not in PARTS:
            raise ConfigError(f"{key}: no part named {part!r}; known: {', '.join(PARTS)}")
        if part in seen:
            raise ConfigError(f"{key}: {part!r} is listed twice")
        seen.add(part)
