"""What a device makes of an offer: the user's subgraph, own patch and scores, all from what came along.

Scores under the federated patch are those of the whole catalogue; with a ceiling on lift, only where the whole
catalogue came, as lift is counted from the median item that came. The steps of personalising compare with every item
that came, so the user's own patch is that of a local recommender only where the whole catalogue came; with drawn
negatives (``meta.num_negatives``) it is drawn over the offer's items.

Shapes: S items of the offer, C candidates, K of them ranked, R entries of a personal patch.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass

import numpy as np

from client.recommend import RecommendTask
from fedquilt.config import Config, parse
from fedquilt.errors import ConfigError, DataError, SpecMismatchError
from fedquilt.graphs.log import InteractionLog
from fedquilt.graphs.splits import HeldOut, Split
from fedquilt.offers import PER_ITEM_PATCH, Offer, cut_patch, require_layout
from fedquilt.types import PatchSpec
from models.kernel import KernelWeights
from models.patches import names_of, patch_spec

_ME = np.zeros(1, np.int64)


@dataclass(frozen=True)
class Ranked:
    """``items_K`` of the catalogue, best first, and what they are called (empty where the cloud says nothing)."""

    items_K: np.ndarray
    scores_K: np.ndarray
    titles: tuple[str, ...]


def rank(offer: Offer, clicks_C: np.ndarray, count: int, personal_R: np.ndarray | None = None) -> Ranked:
    """The user's best ``count`` candidates. ``clicks_C``: the user's items, in order; ``personal_R``: the stored patch,
    in the layout of the whole catalogue's inner tensors (``personal_spec``), or None.

    ConfigError, SpecMismatchError for an offer that does not fit itself.
    """
    config = config_of(offer)
    spec = patch_spec(KernelWeights.of(offer.base), config.patch)
    require_layout(spec, offer)
    places_C = offer.places_of(clicks_C)
    known_C = places_C[places_C >= 0]
    if len(known_C) < len(clicks_C):
        raise DataError(
            f"the offer lacks {len(clicks_C) - len(known_C)} of the {len(clicks_C)} items that were clicked"
        )
    task = _task(config, offer, known_C)
    if offer.ceiling_S is not None:
        task = task.under(offer.ceiling_S)
    personal_1R = np.zeros((1, task.personal_size), np.float32)
    if personal_R is not None:
        personal_1R[0] = cut_patch(personal_spec(config, spec, offer.num_items), personal_R, offer.items_S)
    scores_C = task.personal_scores(_ME, offer.patch_p, personal_1R).numpy()[0, offer.candidates_C]
    scores_C = np.where(np.isin(offer.candidates_C, known_C), -np.inf, scores_C)
    best = np.argsort(-scores_C, kind="stable")[: min(count, int(np.isfinite(scores_C).sum()))]
    titles = tuple(offer.titles[place] for place in best) if offer.titles else ()
    return Ranked(offer.items_S[offer.candidates_C[best]], scores_C[best], titles)


def config_of(offer: Offer) -> Config:
    try:
        config = parse(tomllib.loads(offer.config_toml))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"the recommendation's configuration is not valid TOML: {error}") from None
    if config.attack.name:
        raise ConfigError(f"the cloud serves a configuration with attack {config.attack.name!r}: refused")
    return config


def personal_spec(config: Config, spec: PatchSpec, num_items: int) -> PatchSpec:
    """The layout of a stored personal patch: the inner tensors of ``spec``, over ``num_items`` items."""
    whole = with_items(spec, num_items)
    inner = names_of(config.meta.inner_parts, whole)
    return PatchSpec(tuple((name, shape) for name, shape in whole.shapes if name in inner))


def with_items(spec: PatchSpec, num_items: int) -> PatchSpec:
    """``spec`` over a catalogue of another size."""
    return PatchSpec(
        tuple((name, (num_items, *shape[1:]) if name in PER_ITEM_PATCH else shape) for name, shape in spec.shapes)
    )


def require_spec(offer: Offer, spec_hash: str) -> PatchSpec:
    """The whole catalogue's layout, as the offer has it; SpecMismatchError where the cloud described another one."""
    whole = with_items(patch_spec(KernelWeights.of(offer.base), config_of(offer).patch), offer.num_items)
    if whole.hash != spec_hash:
        raise SpecMismatchError(f"the recommendation has patch spec {whole.hash}, the cloud said {spec_hash}")
    return whole


def _task(config: Config, offer: Offer, known_C: np.ndarray) -> RecommendTask:
    """The recommender of one user over the offer's items."""
    log = InteractionLog("own", np.zeros(len(known_C), np.int64), known_C, 1, len(offer.items_S))
    nothing = HeldOut(np.zeros(0, np.int64), np.zeros(0, np.int64))
    task = RecommendTask(config, Split("none", log, log, nothing, nothing, ""), _ME)
    task.install(offer.base)
    return task
