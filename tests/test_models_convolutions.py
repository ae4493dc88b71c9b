"""Graph convolutions against a plain loop over nodes, numbers by hand, PyG's SAGEConv, and their invariants."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_geometric.nn import SAGEConv

from fedquilt.errors import UnknownNameError
from models.convolutions import CONVOLUTIONS
from models.convolutions.base import gathered_weighted_mean, unit_rows, weighted_mean
from models.convolutions.sage_lstm import permuted_rows
from models.convolutions.sparse_sum import gathered_sum

NAMES = tuple(CONVOLUTIONS)
UNORDERED = tuple(name for name in NAMES if name != "sage-lstm")
IN, HIDDEN, OUT = 5, 7, 6
SOURCES, TARGETS, TOP = 12, 6, 4


def convolution_of(name: str, seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return CONVOLUTIONS[name](IN, HIDDEN, OUT).double()


def random_block(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Row 0 has no neighbours; padding stands anywhere in a row and points at source 0."""
    generator = torch.Generator().manual_seed(seed)
    h_NF = torch.randn(SOURCES, IN, generator=generator, dtype=torch.float64)
    neighbours_DT = torch.randint(0, SOURCES, (TARGETS, TOP), generator=generator)
    weights_DT = torch.rand(TARGETS, TOP, generator=generator, dtype=torch.float64)
    weights_DT[torch.rand(TARGETS, TOP, generator=generator) < 0.3] = 0
    weights_DT[0] = 0
    neighbours_DT[weights_DT == 0] = 0
    return h_NF, neighbours_DT, weights_DT


def dense(name: str, parameters: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    return parameters[f"{name}.weight"] @ x + parameters.get(f"{name}.bias", 0)


def relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def lstm_by_hand(parameters: dict[str, np.ndarray], rows: list[np.ndarray]) -> np.ndarray:
    """The last state of an LSTM (Hochreiter and Schmidhuber 1997) in torch's order of gates: i, f, g, o."""
    state = cell = np.zeros(HIDDEN)
    for row in rows:
        gates = parameters["lstm.weight_ih_l0"] @ row + parameters["lstm.bias_ih_l0"]
        gates = gates + parameters["lstm.weight_hh_l0"] @ state + parameters["lstm.bias_hh_l0"]
        i, f, g, o = np.split(gates, 4)
        cell = sigmoid(f) * cell + sigmoid(i) * np.tanh(g)
        state = sigmoid(o) * np.tanh(cell)
    return state


def node_by_hand(name: str, p: dict[str, np.ndarray], own: np.ndarray, rows: list, alphas: list) -> np.ndarray:
    """One target as the papers write it: its vector, its neighbours' vectors and visit counts -> before the norm."""
    pooled = np.zeros(HIDDEN if name not in ("sage-mean", "sage-gcn") else IN)
    if name == "sage-gcn":
        return relu(dense("combine", p, np.mean([own, *rows], axis=0)))
    if rows and name == "sage-mean":
        pooled = np.mean(rows, axis=0)
    elif rows and name == "sage-lstm":
        pooled = lstm_by_hand(p, rows)
    elif rows and name == "sage-max-pool":
        pooled = np.max([relu(dense("to_pool", p, row)) for row in rows], axis=0)
    elif rows and name == "sage-mean-pool":
        pooled = np.mean([relu(dense("to_pool", p, row)) for row in rows], axis=0)
    elif rows:
        alphas = alphas if name == "pinsage" else [1] * len(rows)
        pooled = sum(a * relu(dense("Q", p, row)) for a, row in zip(alphas, rows, strict=True)) / sum(alphas)
    return relu(dense("W" if name.startswith("pinsage") else "combine", p, np.concatenate([own, pooled])))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", [0, 1])
def test_a_convolution_is_the_papers_formula_node_by_node(name, seed):
    convolution, (h_NF, neighbours_DT, weights_DT) = convolution_of(name, seed), random_block(seed)
    parameters = {key: value.detach().numpy() for key, value in convolution.named_parameters()}
    found = convolution(h_NF, neighbours_DT, weights_DT).detach().numpy()
    for target in range(TARGETS):
        real = [place for place in range(TOP) if weights_DT[target, place] > 0]
        rows = [h_NF[neighbours_DT[target, place]].numpy() for place in real]
        alphas = [weights_DT[target, place].item() for place in real]
        z = node_by_hand(name, parameters, h_NF[target].numpy(), rows, alphas)
        np.testing.assert_allclose(found[target], z / max(np.linalg.norm(z), 1e-12), atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_the_three_stages_give_what_forward_gives(name):
    convolution, (h_NF, neighbours_DT, weights_DT) = convolution_of(name), random_block()
    m_DTM = convolution.project(h_NF)[neighbours_DT]
    assert m_DTM.shape == (TARGETS, TOP, convolution.message_dim)
    staged = convolution.update(h_NF[:TARGETS], convolution.pool(m_DTM, weights_DT), weights_DT)
    torch.testing.assert_close(staged, convolution(h_NF, neighbours_DT, weights_DT), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", UNORDERED)
@given(seed=st.integers(0, 1000))
@settings(max_examples=15)
def test_the_order_of_neighbours_does_not_matter(name, seed):
    convolution, (h_NF, neighbours_DT, weights_DT) = convolution_of(name), random_block(seed)
    shuffled = permuted_rows(neighbours_DT, weights_DT, torch.Generator().manual_seed(seed))
    torch.testing.assert_close(convolution(h_NF, *shuffled), convolution(h_NF, neighbours_DT, weights_DT))


def test_the_lstm_reads_the_order():
    convolution, (h_NF, neighbours_DT, weights_DT) = convolution_of("sage-lstm"), random_block()
    assert convolution.reads_order
    backwards = convolution(h_NF, neighbours_DT.flip(1), weights_DT.flip(1))
    assert (backwards - convolution(h_NF, neighbours_DT, weights_DT)).abs().max() > 1e-4


def test_permuted_rows_keep_each_neighbour_with_its_weight():
    _, neighbours_DT, weights_DT = random_block()
    found = permuted_rows(neighbours_DT, weights_DT, torch.Generator().manual_seed(3))
    for row in range(TARGETS):
        before = sorted(zip(neighbours_DT[row].tolist(), weights_DT[row].tolist(), strict=True))
        assert sorted(zip(found[0][row].tolist(), found[1][row].tolist(), strict=True)) == before
    assert not torch.equal(found[0], neighbours_DT)


@pytest.mark.parametrize("name", NAMES)
@given(seed=st.integers(0, 1000))
@settings(max_examples=15)
def test_what_padding_points_at_never_matters(name, seed):
    convolution, (h_NF, neighbours_DT, weights_DT) = convolution_of(name), random_block(seed)
    elsewhere = torch.where(weights_DT > 0, neighbours_DT, SOURCES - 1)
    torch.testing.assert_close(
        convolution(h_NF, elsewhere, weights_DT), convolution(h_NF, neighbours_DT, weights_DT), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("name", NAMES)
def test_more_padding_never_matters(name):
    convolution, (h_NF, neighbours_DT, weights_DT) = convolution_of(name), random_block()
    zeros = torch.zeros(TARGETS, 3)
    wide = torch.cat([neighbours_DT, zeros.long()], 1), torch.cat([weights_DT, zeros.double()], 1)
    torch.testing.assert_close(convolution(h_NF, *wide), convolution(h_NF, neighbours_DT, weights_DT))


@pytest.mark.parametrize("name", [name for name in NAMES if name != "pinsage"])
def test_only_pinsage_reads_the_size_of_weights(name):
    h_NF, neighbours_DT, weights_DT = random_block()
    equal = (weights_DT > 0).double()
    assert torch.equal(
        convolution_of(name)(h_NF, neighbours_DT, weights_DT), convolution_of(name)(h_NF, neighbours_DT, equal)
    )
    pinsage = convolution_of("pinsage")
    assert (pinsage(h_NF, neighbours_DT, weights_DT) - pinsage(h_NF, neighbours_DT, equal)).abs().max() > 1e-3


def test_pinsage_does_not_read_the_scale_of_weights():
    pinsage, (h_NF, neighbours_DT, weights_DT) = convolution_of("pinsage"), random_block()
    torch.testing.assert_close(pinsage(h_NF, neighbours_DT, 37 * weights_DT), pinsage(h_NF, neighbours_DT, weights_DT))


@pytest.mark.parametrize("name", NAMES)
def test_vectors_have_length_one_unless_relu_leaves_nothing(name):
    found = convolution_of(name)(*random_block())
    assert found.shape == (TARGETS, OUT)
    kept = found.norm(dim=1)[found.any(1)]
    assert len(kept) >= TARGETS - 1
    torch.testing.assert_close(kept, torch.ones_like(kept))


@pytest.mark.parametrize("name", NAMES)
def test_a_target_without_neighbours_and_a_zero_vector_stay_finite_with_their_gradients(name):
    convolution, (h_NF, neighbours_DT, weights_DT) = convolution_of(name), random_block()
    h_NF[0] = 0
    h_NF.requires_grad_()
    for bias in (value for key, value in convolution.named_parameters() if "bias" in key):
        torch.nn.init.zeros_(bias)
    found = convolution(h_NF, neighbours_DT, weights_DT)
    found.square().sum().backward()
    assert not found[0].any()  # nothing in, no bias: nothing out, and no division by the norm
    gradients = [h_NF.grad, *(value.grad for value in convolution.parameters())]
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_those_of_finite_differences(name):
    convolution, (h_NF, neighbours_DT, weights_DT) = convolution_of(name, seed=2), random_block(seed=2)
    parameters = tuple(convolution.parameters())

    def run(h, *_):
        return convolution(h, neighbours_DT, weights_DT)

    assert torch.autograd.gradcheck(run, (h_NF.requires_grad_(), *parameters), atol=1e-5)


# Three nodes, h = (1, 0), (0, 2), (3, 4). Node 0's neighbours: 1 (visited 3 times) and 2 (once). W adds what is pooled
# to the node's own vector.
H = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 4.0]])
NEIGHBOURS, VISITS = torch.tensor([[1, 2]]), torch.tensor([[0.75, 0.25]])
COMBINE = torch.tensor([[1.0, 0.0, 1.0, 0.0], [0.0, 1.0, 0.0, 1.0]])  # own + pooled


def golden(name: str, **weights: torch.Tensor) -> torch.Tensor:
    convolution = CONVOLUTIONS[name](2, 2, 2)
    with torch.no_grad():
        for key, value in convolution.named_parameters():
            value.copy_(weights.get(key.removesuffix(".weight"), torch.zeros_like(value)))
        return convolution(H, NEIGHBOURS, VISITS)[0]


def unit(x: float, y: float) -> torch.Tensor:
    return torch.tensor([x, y]) / math.hypot(x, y)


GOLDEN = {
    # pooled ((0 + 3) / 2, (2 + 4) / 2) = (1.5, 3); own (1, 0); sum (2.5, 3)
    "sage-mean": (golden("sage-mean", combine=COMBINE), unit(2.5, 3)),
    # mean of (1, 0), (0, 2), (3, 4) = (4/3, 2)
    "sage-gcn": (golden("sage-gcn", combine=torch.eye(2)), unit(4 / 3, 2)),
    # W_pool turns the sign of the first: messages ReLU(0, 2), ReLU(-3, 4) = (0, 2), (0, 4); max (0, 4), mean (0, 3)
    "sage-max-pool": (
        golden("sage-max-pool", to_pool=torch.diag(torch.tensor([-1.0, 1])), combine=COMBINE),
        unit(1, 4),
    ),
    "sage-mean-pool": (
        golden("sage-mean-pool", to_pool=torch.diag(torch.tensor([-1.0, 1])), combine=COMBINE),
        unit(1, 3),
    ),
    # .75 (0, 2) + .25 (3, 4) = (.75, 2.5); own (1, 0); sum (1.75, 2.5)
    "pinsage": (golden("pinsage", Q=torch.eye(2), W=COMBINE), unit(1.75, 2.5)),
    "pinsage-mean": (golden("pinsage-mean", Q=torch.eye(2), W=COMBINE), unit(2.5, 3)),
    # All gates without weights: i = f = o = 1/2, g = 0, so that the state stays 0, whatever is read.
    "sage-lstm": (golden("sage-lstm", combine=COMBINE), unit(1, 0)),
}


@pytest.mark.parametrize("name", NAMES)
def test_three_nodes_by_hand(name):
    found, expected = GOLDEN[name]
    torch.testing.assert_close(found, expected)


def edges_of(neighbours_DT: torch.Tensor, weights_DT: torch.Tensor) -> torch.Tensor:
    targets, places = (weights_DT > 0).nonzero(as_tuple=True)
    return torch.stack([neighbours_DT[targets, places], targets])


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("sage-mean", {"aggr": "mean"}),
        ("sage-max-pool", {"aggr": "max", "project": True}),
        ("sage-mean-pool", {"aggr": "mean", "project": True}),
    ],
)
def test_pyg_agrees(name, options):
    # PyG normalises without a ReLU: its linear part is compared, ours follows by ReLU and norm. With project=True its
    # messages are as wide as the input.
    torch.manual_seed(0)
    ours, (h_NF, neighbours_DT, weights_DT) = CONVOLUTIONS[name](IN, IN, OUT).double(), random_block()
    oracle = SAGEConv(IN, OUT, bias=False, **options).double()
    with torch.no_grad():
        oracle.lin_r.weight.copy_(ours.combine.weight[:, :IN])
        oracle.lin_l.weight.copy_(ours.combine.weight[:, IN:])
        if "project" in options:
            oracle.lin.weight.copy_(ours.to_pool.weight)
            oracle.lin.bias.copy_(ours.to_pool.bias)
    linear = oracle((h_NF, h_NF[:TARGETS]), edges_of(neighbours_DT, weights_DT), size=(SOURCES, TARGETS))
    expected = torch.nn.functional.normalize(linear.relu(), dim=1)
    torch.testing.assert_close(ours(h_NF, neighbours_DT, weights_DT), expected, rtol=0, atol=1e-12)


def test_pyg_agrees_on_gcn_with_self_loops():
    ours, (h_NF, neighbours_DT, weights_DT) = convolution_of("sage-gcn"), random_block()
    oracle = SAGEConv(IN, OUT, aggr="mean", root_weight=False, bias=False).double()
    with torch.no_grad():
        oracle.lin_l.weight.copy_(ours.combine.weight)
    loops = torch.arange(TARGETS).repeat(2, 1)
    edges = torch.cat([edges_of(neighbours_DT, weights_DT), loops], dim=1)
    expected = torch.nn.functional.normalize(oracle((h_NF, None), edges, size=(SOURCES, TARGETS)).relu(), dim=1)
    torch.testing.assert_close(ours(h_NF, neighbours_DT, weights_DT), expected, rtol=0, atol=1e-12)


def test_pooling_without_the_table_of_messages_is_the_same_to_the_gradient():
    h_NF, neighbours_DT, weights_DT = random_block()
    one, other = (h_NF.clone().requires_grad_() for _ in range(2))
    table = weighted_mean(one[neighbours_DT], weights_DT)
    gathered = gathered_weighted_mean(other, neighbours_DT, weights_DT)
    torch.testing.assert_close(gathered, table)
    table.square().sum().backward()
    gathered.square().sum().backward()
    torch.testing.assert_close(other.grad, one.grad)


def test_unit_rows_leave_zeros_alone():
    rows = torch.tensor([[0.0, 0.0], [3.0, 4.0], [1e-15, 0.0]], requires_grad=True)
    found = unit_rows(rows)
    found.sum().backward()
    torch.testing.assert_close(found[:2], torch.tensor([[0.0, 0.0], [0.6, 0.8]]))
    assert torch.isfinite(found).all()
    assert rows.grad[0].tolist() == [0, 0]


def test_an_unknown_convolution_names_its_neighbour():
    with pytest.raises(UnknownNameError, match="did you mean 'pinsage'"):
        CONVOLUTIONS["pinsag"]


def test_the_gathered_sum_has_the_gradient_that_finite_differences_say():
    generator = torch.Generator().manual_seed(0)
    sources_NM = torch.randn(5, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    places_DT = torch.tensor([[0, 4, 4], [2, 0, 0]])  # one source twice in a row, and one in both
    weights_DT = torch.tensor([[0.5, 0.25, 0.25], [1.0, 2.0, 0.0]], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda m_NM: gathered_sum(m_NM, places_DT, weights_DT), sources_NM)
