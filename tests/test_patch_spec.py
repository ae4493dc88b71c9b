"""The layout of a patch, and what a fresh patch holds."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_recommender import ALL_PARTS, DIM, ITEMS, PATCH, random_weights, spec_of

from fedquilt.config import PatchConfig
from fedquilt.errors import ConfigError, SpecMismatchError
from fedquilt.types import Patch, PatchSpec
from models.patches import initial_patch, names_of, patch_spec, require_inner_parts

SHAPES = st.dictionaries(
    st.text("abc.", min_size=1, max_size=6), st.lists(st.integers(1, 4), max_size=3).map(tuple), max_size=5
)


@given(SHAPES, st.lists(st.integers(1, 3), max_size=2))
def test_views_are_the_flat_vector_cut_in_order_and_share_its_memory(shapes, lead):
    spec = PatchSpec(tuple(shapes.items()))
    assert spec.num_parameters == sum(math.prod(shape) for shape in shapes.values())
    flat = np.arange(math.prod(lead) * spec.num_parameters, dtype=np.float32).reshape(*lead, -1)
    views = spec.views(flat) if spec.num_parameters else {}
    for name, view in views.items():
        assert view.shape == (*lead, *shapes[name])
        assert np.shares_memory(view, flat)
    if views:
        together = np.concatenate([view.reshape(*lead, -1) for view in views.values()], axis=-1)
        assert (together == flat).all()


def test_views_of_torch_and_of_numpy_agree():
    spec = spec_of()
    flat_UP = np.random.default_rng(0).random((3, spec.num_parameters), np.float32)
    ours, torchs = spec.views(flat_UP), spec.views(torch.from_numpy(flat_UP))
    assert all((torchs[name].numpy() == ours[name]).all() for name in ours)


def test_the_hash_tells_names_shapes_and_order_apart():
    layouts = [
        (("a", (2, 3)),),
        (("b", (2, 3)),),
        (("a", (3, 2)),),
        (("a", (6,)),),
        (("a", (2, 3)), ("b", (1,))),
        (("b", (1,)), ("a", (2, 3))),
    ]
    assert len({PatchSpec(layout).hash for layout in layouts}) == len(layouts)
    assert PatchSpec(layouts[0]).hash == PatchSpec.of({"a": np.zeros((2, 3))}).hash
    assert PatchSpec.of({"a": torch.zeros(2, 3)}) == PatchSpec.of({"a": np.zeros((2, 3))})


def test_a_vector_of_another_length_is_refused():
    spec = PatchSpec((("a", (2, 3)),))
    with pytest.raises(SpecMismatchError, match="has 5 parameters"):
        spec.views(np.zeros((4, 5)))
    with pytest.raises(SpecMismatchError, match=r"shape \(5,\), spec says \(6,\)"):
        Patch(spec, np.zeros(5))
    Patch(spec, np.zeros(6))


def test_another_hash_is_refused_with_the_place():
    spec = PatchSpec((("a", (2,)),))
    spec.require(spec.hash, "here")
    with pytest.raises(SpecMismatchError, match="here: patch spec beef does not fit ours"):
        spec.require("beef", "here")


# --- parts ---


@pytest.mark.parametrize(
    ("part", "size"),
    [
        ("bottleneck", 2 * 2 * DIM * 3),
        ("item-bias", ITEMS),
        ("item-low-rank", 2 * (ITEMS * 2 + 2 * DIM)),
        ("readout", 3 * 6 + 4 * DIM * DIM),
        ("convolution", 2 * DIM * DIM),
    ],
)
def test_a_part_has_the_size_that_its_formula_says(part, size):
    assert spec_of((part,)).num_parameters == size


def test_parts_lie_in_the_order_of_the_configuration():
    there, back = spec_of(("item-bias", "bottleneck")), spec_of(("bottleneck", "item-bias"))
    assert dict(there.shapes) == dict(back.shapes)
    assert there.hash != back.hash


def test_every_tensor_belongs_to_exactly_one_part():
    spec = spec_of()
    by_part = [names_of((part,), spec) for part in ALL_PARTS]
    assert sorted(name for names in by_part for name in names) == sorted(name for name, _ in spec.shapes)
    for part, names in zip(ALL_PARTS, by_part, strict=True):
        assert dict(spec_of((part,)).shapes).keys() == set(names)


def test_names_come_in_the_order_of_the_spec_and_absent_parts_have_none():
    spec = spec_of(("readout", "bottleneck"))
    assert names_of(("bottleneck", "item-bias", "readout"), spec) == tuple(name for name, _ in spec.shapes)


@pytest.mark.parametrize(
    ("parts", "words"),
    [(("bottlenek",), "patch.parts: no part named 'bottlenek'; known: "), (("readout", "readout"), "listed twice")],
)
def test_unknown_and_repeated_parts_are_refused(parts, words):
    with pytest.raises(ConfigError, match=words):
        patch_spec(random_weights(), PatchConfig(parts=parts))
    with pytest.raises(ConfigError, match=words.replace("patch.parts", "meta.inner_parts")):
        names_of(parts, spec_of())


def test_an_inner_part_that_the_patch_lacks_is_refused_with_what_to_set():
    with pytest.raises(
        ConfigError, match=r"meta.inner_parts names 'readout', patch.parts = \['item-bias'\] has no such"
    ):
        require_inner_parts(("readout", "item-bias"), ("item-bias",))
    require_inner_parts(("readout",), ("item-bias", "readout"))
    require_inner_parts((), ())


def test_a_fresh_patch_is_drawn_where_it_multiplies_zero_and_zero_elsewhere():
    weights = random_weights(num_items=50, dim=16)
    spec = patch_spec(weights, PATCH.model_copy(update={"parts": ALL_PARTS, "bottleneck": 64, "item_rank": 32}))
    views = spec.views(initial_patch(spec, torch.Generator().manual_seed(0)))
    drawn = {name for name, view in views.items() if view.any()}
    assert drawn == {"bottleneck.0.down", "bottleneck.1.down", "item_in.basis", "item_out.basis"}
    # variance 1 / fan-in: 1,024 draws of 1/16 and 512 of 1/32, each within 5 standard errors
    for name, fan_in in (("bottleneck.0.down", 16), ("item_in.basis", 32)):
        values = views[name]
        assert values.shape[0] == fan_in
        assert values.pow(2).mean().item() * fan_in == pytest.approx(1, abs=5 * math.sqrt(2 / values.numel()))


def test_a_fresh_patch_depends_on_the_generator_alone():
    spec = spec_of()
    first, again, other = (initial_patch(spec, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert first.equal(again)
    assert not first.equal(other)
    assert first.dtype == torch.float32
    assert first.shape == (spec.num_parameters,)
