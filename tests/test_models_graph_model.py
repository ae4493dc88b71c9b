"""The graph model: convolutions over blocks and a head; new items, reproducible parameters, clear errors."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedquilt.errors import ConfigError, DataError, UnknownNameError
from fedquilt.graphs.assemble import assemble
from fedquilt.graphs.blocks import build_blocks, table_sampler
from fedquilt.graphs.coclick import build_coclick
from fedquilt.graphs.importance import ppr
from models.convolutions import CONVOLUTIONS
from models.graph_losses import Scores, max_margin
from models.graph_model import TorchBlock, build_graph_model

FEATURES = 5


def model_of(seed: int = 0, **changes):
    settings = {
        "convolution": "pinsage", "num_layers": 2, "in_dim": FEATURES, "hidden": 7, "dim": 4, "head": True,
    }  # fmt: skip
    return build_graph_model(**{**settings, **changes}, generator=torch.Generator().manual_seed(seed))


def blocks_of(seed: int = 0) -> tuple[torch.Tensor, list[TorchBlock]]:
    """10 sources -> 6 -> 3 targets, 4 neighbours each."""
    generator = torch.Generator().manual_seed(seed)
    blocks = [
        TorchBlock(
            torch.randint(0, sources, (targets, 4), generator=generator), torch.rand(targets, 4, generator=generator)
        )
        for sources, targets in ((10, 6), (6, 3))
    ]
    return torch.randn(10, FEATURES, generator=generator), blocks


@pytest.mark.parametrize("convolution", list(CONVOLUTIONS))
def test_the_model_stacks_its_layers_and_ends_with_two_dense_ones(convolution):
    model, (features_NF, (first, second)) = model_of(convolution=convolution), blocks_of()
    h_NF = model.layers[0](features_NF, first.neighbours_DT, first.weights_DT)
    h_DF = model.layers[1](h_NF, second.neighbours_DT, second.weights_DT)
    assert h_NF.shape == (6, 7)  # hidden between layers
    G1, _, G2 = model.head
    expected = torch.relu(h_DF @ G1.weight.T + G1.bias) @ G2.weight.T
    torch.testing.assert_close(model(features_NF, [first, second]), expected)


def test_without_a_head_vectors_are_the_last_layers():
    vectors = model_of(head=False)(*blocks_of())
    assert vectors.shape == (3, 4)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(3))


def test_without_layers_features_go_through_the_head_alone():
    model = model_of(num_layers=0)
    features_NF, _ = blocks_of()
    vectors = model(features_NF, [])
    assert vectors.shape == (10, 4)
    torch.testing.assert_close(vectors[3:4], model(features_NF[3:4], []))


def test_parameters_come_from_the_generator_alone():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = model_of(seed=3, convolution="sage-lstm").state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    again, other = (model_of(seed=seed, convolution="sage-lstm").state_dict() for seed in (3, 4))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["layers.0.combine.weight"], other["layers.0.combine.weight"])
    assert not torch.equal(first["layers.0.lstm.weight_hh_l0"], other["layers.0.lstm.weight_hh_l0"])


def test_the_generator_of_a_pass_shuffles_what_the_lstm_reads_and_nothing_else():
    features_NF, blocks = blocks_of()
    for convolution, moves in (("sage-lstm", True), ("pinsage", False)):
        model = model_of(convolution=convolution)
        shuffled = [model(features_NF, blocks, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
        assert torch.equal(shuffled[0], shuffled[1])
        assert torch.equal(shuffled[0], shuffled[2]) != moves


def test_a_block_of_numpy_arrays_shares_their_memory():
    class Block:
        neighbours_DT = np.zeros((2, 3), np.int64)
        weights_DT = np.ones((2, 3), np.float32)

    block = TorchBlock.of(Block)
    Block.weights_DT[0, 0] = 9
    assert block.weights_DT[0, 0] == 9
    assert block.neighbours_DT.dtype == torch.int64


def of_items(queries_BF: torch.Tensor, items: torch.Tensor) -> Scores:
    """Dot products with one item a query, or with several."""
    values_BN = torch.einsum("bf,bnf->bn", queries_BF, items if items.dim() == 3 else items[:, None])
    return Scores(values_BN, torch.ones_like(values_BN, dtype=torch.bool))


def test_an_item_never_seen_gets_a_vector_like_its_kind():
    """Two kinds of items, told apart by a feature; item 9 is in no training pair and in no trained neighbourhood."""
    features_IF = torch.randn(10, FEATURES, generator=torch.Generator().manual_seed(0)) * 0.1
    kind_I = torch.arange(10) % 2
    features_IF[:, 0] = 2.0 * kind_I - 1
    model = model_of(num_layers=1)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    trained = torch.arange(8)
    like = TorchBlock((trained[:, None] + torch.tensor([2, 4])) % 8, torch.ones(8, 2))
    for _ in range(100):
        vectors = model(features_IF[:8], [like])
        negatives = vectors[(trained[:, None] + torch.tensor([1, 3])) % 8]
        loss = max_margin(of_items(vectors, vectors[(trained + 2) % 8]), of_items(vectors, negatives), margin=0.5)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    everyone = torch.arange(10)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    neighbours = torch.where(
        everyone[:, None] == 9, torch.tensor([1, 3]), (everyone[:, None] + torch.tensor([2, 4])) % 8
    )
    vectors = model(features_IF, [TorchBlock(neighbours, torch.ones(10, 2))])
    scores_of_9 = vectors[:8] @ vectors[9]
    assert scores_of_9[kind_I[:8] == 1].min() > scores_of_9[kind_I[:8] == 0].max() + 0.25
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


@pytest.mark.parametrize("convolution", list(CONVOLUTIONS))
def test_blocks_of_sampled_neighbourhoods_give_the_vectors_of_the_whole_catalogue(convolution):
    rng = np.random.default_rng(0)
    log = assemble("walks", np.repeat(np.arange(20), 6), rng.integers(0, 15, 120), item_ids=np.arange(17))
    table = ppr(build_coclick(log, 2, 5), np.arange(17), alpha=0.3, top=4)  # items 15 and 16 are isolated
    features_IF = torch.randn(17, FEATURES, generator=torch.Generator().manual_seed(0))
    model = model_of(convolution=convolution)
    everyone = TorchBlock(torch.from_numpy(table.items_ST).long().clamp(min=0), torch.from_numpy(table.weights_ST))
    expected = model(features_IF, [everyone, everyone])
    targets = np.array([16, 3, 0])
    blocks = build_blocks(targets, table_sampler(table), 2)
    found = model(features_IF[blocks[0].sources_N], [TorchBlock.of(block) for block in blocks])
    torch.testing.assert_close(found, expected[targets])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"in_dim": 0}, "items have 0 features"),
        ({"dim": 0}, "dim >= 1"),
        ({"num_layers": -1}, "num_layers >= 0"),
        ({"num_layers": 0, "head": False}, "nothing to train"),
    ],
)
def test_impossible_sizes_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        model_of(**changes)


def test_an_unknown_convolution_is_refused():
    with pytest.raises(UnknownNameError, match="convolution"):
        model_of(convolution="sage")


def test_blocks_and_features_must_fit_the_model():
    features_NF, blocks = blocks_of()
    with pytest.raises(DataError, match="1 blocks for 2 layers"):
        model_of()(features_NF, blocks[:1])
    with pytest.raises(DataError, match=r"expected \[N, 5\]"):
        model_of()(features_NF[:, :3], blocks)


def test_a_skip_connection_adds_a_linear_map_of_the_targets_own_features():
    plain, skipping = model_of(), model_of(skip=True)
    features_NF, blocks = blocks_of()
    skipping.load_state_dict({**skipping.state_dict(), **plain.state_dict()})
    added_DF = skipping(features_NF, blocks) - plain(features_NF, blocks)
    assert torch.allclose(added_DF, skipping.skip(features_NF[:3]), atol=1e-6)


def test_a_fresh_skip_connection_keeps_dot_products_and_a_fresh_user_map_is_the_identity():
    fresh = model_of(skip=True, user_map=True, dim=16)
    features_NF = torch.randn(6, fresh.in_dim, generator=torch.Generator().manual_seed(1))
    through_NF = fresh.skip(features_NF)
    assert torch.allclose(through_NF @ through_NF.T, features_NF @ features_NF.T / fresh.in_dim, atol=1e-5)
    assert torch.equal(fresh.user_map(through_NF), through_NF)
