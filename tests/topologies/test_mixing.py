"""Mixing matrices: against spectra in closed form and computed elsewhere, and the words of every refusal."""

from __future__ import annotations

import math
from functools import reduce
from typing import Any

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from topologies import (
    BUILDERS,
    MIXINGS,
    check_mixing,
    complete,
    exponential,
    lazy,
    lazy_metropolis_hastings,
    lazy_uniform,
    metropolis_hastings,
    one_peer_exponential,
    ring,
    second_largest_eigenvalue_modulus,
    smallest_eigenvalue,
    spectral_gap,
    star,
    uniform,
)


@pytest.mark.parametrize("n", [3, 4, 5, 8, 16, 32, 64])
def test_ring_has_the_spectrum_of_its_circulant(n: int) -> None:
    eigenvalues = sorted((1 + 2 * math.cos(2 * math.pi * j / n)) / 3 for j in range(n))
    W = uniform(ring(nodes=n))
    np.testing.assert_allclose(np.linalg.eigvalsh(W), eigenvalues, atol=1e-12)
    modulus = sorted(map(abs, eigenvalues))[-2]
    assert spectral_gap(W) == pytest.approx(1 - modulus, abs=1e-12)
    assert second_largest_eigenvalue_modulus(W) == pytest.approx(modulus, abs=1e-12)
    assert smallest_eigenvalue(W) == pytest.approx(eigenvalues[0], abs=1e-12)


@pytest.mark.parametrize(("n", "rho"), [(4, 0.333), (8, 0.805), (16, 0.949), (32, 0.987), (64, 0.997)])
def test_ring_table(n: int, rho: float) -> None:
    W = metropolis_hastings(ring(nodes=n))
    np.testing.assert_allclose(W, uniform(ring(nodes=n)), atol=1e-15)
    assert 1 - spectral_gap(W) == pytest.approx(rho, abs=5e-4)
    assert smallest_eigenvalue(W) == pytest.approx(-1 / 3, abs=1e-12)


@pytest.mark.parametrize(("n", "rho"), [(4, 0.333), (8, 0.5), (16, 0.6), (32, 0.667), (64, 0.714)])
def test_static_exponential_table(n: int, rho: float) -> None:
    W = uniform(exponential(nodes=n))
    assert 1 - spectral_gap(W) == pytest.approx(rho, abs=5e-4)
    assert 1 - spectral_gap(W) == pytest.approx(1 - 2 / (2 + math.floor(math.log2(n - 1))), abs=1e-12)


@pytest.mark.parametrize("n", [6, 10, 12, 20, 30])
def test_static_exponential_formula_holds_for_every_even_n(n: int) -> None:
    gap = spectral_gap(uniform(exponential(nodes=n)))
    assert gap == pytest.approx(2 / (2 + math.floor(math.log2(n - 1))), abs=1e-12)


@pytest.mark.parametrize(
    ("shape", "rho", "smallest"),
    [
        ((2, 2), 0.333, -0.333),
        ((2, 4), 0.854, -0.384),
        ((4, 4), 0.869, -0.431),
        ((4, 8), 0.966, -0.496),
        ((8, 8), 0.968, -0.551),
    ],
)
def test_metropolis_grid_table(shape: tuple[int, int], rho: float, smallest: float) -> None:
    W = metropolis_hastings(nx.convert_node_labels_to_integers(nx.grid_2d_graph(*shape)))
    assert 1 - spectral_gap(W) == pytest.approx(rho, abs=5e-4)
    assert smallest_eigenvalue(W) == pytest.approx(smallest, abs=5e-4)


@pytest.mark.parametrize("period", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("first", [0, 1])
def test_one_peer_exponential_averages_exactly_within_a_period(period: int, first: int) -> None:
    n = 2**period
    rounds = [uniform(one_peer_exponential(nodes=n, phase=first + k)) for k in range(period)]
    product = reduce(np.matmul, rounds, np.eye(n))
    np.testing.assert_array_equal(product, np.full((n, n), 1 / n))
    if period > 1:
        assert np.abs(reduce(np.matmul, rounds[1:]) - 1 / n).max() > 0.1 / n


def test_uniform_reads_the_models_of_in_neighbours() -> None:
    graph: Any = nx.DiGraph([(0, 1), (1, 2), (2, 0), (0, 2)])
    third = 1 / 3
    np.testing.assert_array_equal(uniform(graph), [[0.5, 0, 0.5], [0.5, 0.5, 0], [third, third, third]])


def test_uniform_indexes_by_rank_and_not_by_order() -> None:
    graph: Any = nx.Graph()
    graph.add_nodes_from([2, 0, 1])
    graph.add_edge(2, 1)
    for rule in (uniform, metropolis_hastings):
        np.testing.assert_array_equal(rule(graph), [[1, 0, 0], [0, 0.5, 0.5], [0, 0.5, 0.5]])


def test_metropolis_hastings_of_a_star() -> None:
    # Centre of degree 3: every edge weighs 1/4, the centre keeps 1/4 and each leaf 3/4.
    wanted = [[0.25, 0.25, 0.25, 0.25], [0.25, 0.75, 0, 0], [0.25, 0, 0.75, 0], [0.25, 0, 0, 0.75]]
    np.testing.assert_array_equal(metropolis_hastings(star(nodes=4)), wanted)


def test_lazy() -> None:
    W = uniform(ring(nodes=6))
    np.testing.assert_array_equal(lazy(W), (W + np.eye(6)) / 2)
    np.testing.assert_allclose(lazy(W, self_weight=1 / 3), (2 * W + np.eye(6)) / 3, atol=1e-15)
    np.testing.assert_array_equal(lazy(W, self_weight=0), W)
    np.testing.assert_array_equal(lazy_uniform(ring(nodes=6)), lazy(W))
    np.testing.assert_array_equal(
        lazy_metropolis_hastings(star(nodes=4)), lazy(metropolis_hastings(star(nodes=4)))
    )
    # D-squared's condition: a ring of even n sits on -1/3, and the lazy one at (1 - 1/3)/2.
    assert smallest_eigenvalue(lazy(W)) == pytest.approx(1 / 3)
    check_mixing(lazy(W), symmetric=True, smallest_eigenvalue_above=-1 / 3)


@pytest.mark.parametrize("theta", [-0.1, 1.0, 2, math.nan])
def test_lazy_refuses_a_self_weight_out_of_range(theta: float) -> None:
    with pytest.raises(ValueError) as error:
        lazy(np.eye(2), self_weight=theta)
    assert str(error.value) == f"self_weight must be at least 0 and below 1, got {theta!r}"


@pytest.mark.parametrize("rule", MIXINGS)
@pytest.mark.parametrize(
    "name", ["ring", "star", "complete", "torus", "hypercube", "random-regular", "exponential"]
)
@given(data=st.data())
@settings(max_examples=15, deadline=None)
def test_matrices_are_stochastic_and_mix(
    name: str, rule: str, data: st.DataObject, parameters: dict[str, Any]
) -> None:
    graph: Any = BUILDERS[name](**data.draw(parameters[name]))
    if graph.is_directed() and "metropolis" in rule:
        return
    W = MIXINGS[rule](graph)
    n = len(graph)
    assert W.shape == (n, n)
    assert W.dtype == np.float64
    np.testing.assert_allclose(W.sum(axis=1), 1, atol=1e-12)
    for i in range(n):
        neighbours = set(graph.pred[i] if graph.is_directed() else graph[i])
        assert set(np.flatnonzero(W[i])) - {i} == neighbours
    if name != "star" or "metropolis" in rule:
        check_mixing(W, symmetric=not graph.is_directed())
        assert spectral_gap(W) > 1e-3
        assert 1 - spectral_gap(W) >= second_largest_eigenvalue_modulus(W) - 1e-9
    if rule == "lazy-metropolis-hastings":
        assert smallest_eigenvalue(W) >= -1e-12


@given(seed=st.integers(0, 10_000), n=st.integers(1, 9))
@settings(max_examples=60, deadline=None)
def test_metropolis_hastings_is_doubly_stochastic_on_any_graph(seed: int, n: int) -> None:
    W = metropolis_hastings(nx.gnp_random_graph(n, 0.4, seed=seed))
    np.testing.assert_array_equal(W, W.T)
    np.testing.assert_allclose(W.sum(axis=0), 1, atol=1e-12)
    assert (W >= -1e-15).all()


def test_spectral_facts_of_one_and_of_perfect_averaging() -> None:
    one = uniform(ring(nodes=1))
    assert one.tolist() == [[1.0]]
    assert (spectral_gap(one), smallest_eigenvalue(one), second_largest_eigenvalue_modulus(one)) == (1, 1, 0)
    check_mixing(one, symmetric=True)
    J = uniform(complete(nodes=5))
    assert spectral_gap(J) == pytest.approx(1)
    assert second_largest_eigenvalue_modulus(J) == pytest.approx(0, abs=1e-12)


def test_spectral_gap_is_that_of_the_two_norm() -> None:
    # Row-stochastic, not normal: singular and eigenvalues differ. W - J = [[.5, -.5], [0, 0]] has the
    # singular value sqrt(1/2) and the eigenvalue 1/2.
    W = np.array([[1.0, 0.0], [0.5, 0.5]])
    assert spectral_gap(W) == pytest.approx(1 - math.sqrt(0.5))
    assert second_largest_eigenvalue_modulus(W) == pytest.approx(0.5)


def test_smallest_eigenvalue_needs_symmetry() -> None:
    with pytest.raises(ValueError) as error:
        smallest_eigenvalue(uniform(exponential(nodes=5)))
    assert str(error.value) == (
        "row 0 of the mixing matrix: it is not symmetric, weight 0 of column 2 against 0.25 the other way"
    )


NAN = math.nan
BLOCKS = np.kron(np.eye(2), np.full((2, 2), 0.5))

REFUSALS: list[tuple[Any, dict[str, Any], str]] = [
    (np.ones((2, 3)), {}, "a mixing matrix must be square, got shape (2, 3)"),
    (np.ones(4), {}, "a mixing matrix must be square, got shape (4,)"),
    (np.ones((0, 0)), {}, "a mixing matrix must be square, got shape (0, 0)"),
    ([[1, 0], [NAN, 1]], {}, "row 1 of the mixing matrix: weight nan of column 0 is not finite"),
    ([[0.5, 0.5], [1.5, -0.5]], {}, "row 1 of the mixing matrix: weight -0.5 of column 1 is negative"),
    ([[0.5, 0.5], [0.5, 0.25]], {}, "row 1 of the mixing matrix: its weights sum to 0.75, not 1"),
    ([[1.0, 0.0], [0.5, 0.5]], {}, "column 0 of the mixing matrix: its weights sum to 1.5, not 1"),
    (
        [[0.5, 0.5 + 3e-9], [0.5, 0.5]],
        {},
        "row 0 of the mixing matrix: its weights sum to 1.000000003, not 1",
    ),
    (
        uniform(exponential(nodes=5)),
        {},
        "row 0 of the mixing matrix: it is not symmetric, weight 0 of column 2 against 0.25 the other way",
    ),
    (
        BLOCKS,
        {},
        "row 2 of the mixing matrix: worker 2 is not connected to worker 0, only 2 of 4 workers are",
    ),
    (
        [[0.0, 1.0], [1.0, 0.0]],
        {},
        "the mixing matrix has a second eigenvalue of modulus 1: the workers never agree; "
        "give each worker a weight of its own (a lazy matrix does)",
    ),
    (
        uniform(ring(nodes=8)),
        {"smallest_eigenvalue_above": -1 / 3},
        "the mixing matrix has the smallest eigenvalue -0.333333333333, which must be above -0.333333333333; "
        "a lazy matrix raises it",
    ),
    (
        uniform(exponential(nodes=5)),
        {"symmetric": False, "smallest_eigenvalue_above": 0.0},
        "smallest_eigenvalue_above 0.0 needs symmetric=True: only the eigenvalues of a symmetric matrix "
        "are surely real",
    ),
]


@pytest.mark.parametrize(("W", "options", "message"), REFUSALS)
def test_check_mixing_refuses(W: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as error:
        check_mixing(np.array(W, dtype=float), **{"symmetric": True, **options})
    assert str(error.value) == message


def test_check_mixing_rejects_within_the_margin_and_no_further() -> None:
    W = uniform(ring(nodes=4))  # smallest eigenvalue -1/3
    check_mixing(W, symmetric=True, smallest_eigenvalue_above=-1 / 3 - 2e-9)
    with pytest.raises(ValueError, match="smallest eigenvalue"):
        check_mixing(W, symmetric=True, smallest_eigenvalue_above=-1 / 3 - 0.5e-9)


def test_uniform_weights_of_a_star_are_refused_for_their_columns() -> None:
    # Three leaves give the centre 1/2 each, and it gives itself 1/4.
    with pytest.raises(ValueError) as error:
        check_mixing(uniform(star(nodes=4)), symmetric=False)
    assert str(error.value) == "column 0 of the mixing matrix: its weights sum to 1.75, not 1"


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        (nx.Graph(), "a mixing matrix needs a graph with at least 1 node, got none"),
        (nx.path_graph(["a", "b"]), "a mixing matrix needs a rank graph with the nodes 0 to 1, got node 'a'"),
        (nx.path_graph([1, 2]), "a mixing matrix needs a rank graph with the nodes 0 to 1, got node 2"),
        (nx.Graph([(0, 1), (1, 1)]), "a mixing matrix needs a graph without self loops, got one at node 1"),
    ],
)
def test_rules_refuse_what_is_no_rank_graph(graph: Any, message: str) -> None:
    for rule in MIXINGS.values():
        with pytest.raises(ValueError) as error:
            rule(graph)
        assert str(error.value) == message


def test_metropolis_hastings_refuses_a_directed_graph() -> None:
    for rule in (metropolis_hastings, lazy_metropolis_hastings):
        with pytest.raises(ValueError) as error:
            rule(exponential(nodes=4))
        assert str(error.value) == "metropolis-hastings needs an undirected graph, got a directed one"


def test_one_round_of_a_schedule_need_not_be_connected() -> None:
    with pytest.raises(ValueError) as error:
        check_mixing(uniform(one_peer_exponential(nodes=8, phase=1)), symmetric=False)
    assert str(error.value) == (
        "row 1 of the mixing matrix: worker 1 is not connected to worker 0, only 4 of 8 workers are"
    )
