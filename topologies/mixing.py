"""Mixing matrices of decentralised SGD on a rank graph, their checks and their spectra.

In a round of gossip worker i replaces its model by Σ_j W[i, j]·x_j over itself and its in-neighbours. W is
row-stochastic (an average stays an average); if its columns sum to 1 too, the mean of the models is kept.
With J = 11ᵀ/n, the matrix of exact averaging, ρ_s = ‖W - J‖₂ is the factor by which a round shrinks the
distance to consensus at least.

Sources: Xiao and Boyd (Systems & Control Letters 2004) for the weights; Lian et al. (NeurIPS 2017) for their
use in D-PSGD; Tang et al. (ICML 2018) for D², which needs the smallest eigenvalue above -1/3; Ying et al.
(NeurIPS 2021) for ρ_s of the static exponential graph, 1 - 2/(2 + floor(log2(n-1))) for even n.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import networkx as nx
import numpy as np
from numpy.typing import NDArray

from topologies.attributes import Graph, check_simple

Matrix: TypeAlias = NDArray[np.float64]

TOLERANCE = 1e-9
"""How far a sum, a symmetry or a spectrum may be off before a matrix is refused."""


def _ranks(graph: Graph) -> int:
    """Return the number of ranks of a graph that has the nodes 0..n-1 and no self loop."""
    check_simple(graph)
    n = graph.number_of_nodes()
    if n == 0:
        raise ValueError("a mixing matrix needs a graph with at least 1 node, got none")
    for node in graph:
        if isinstance(node, bool) or not isinstance(node, int) or not 0 <= node < n:
            raise ValueError(
                f"a mixing matrix needs a rank graph with the nodes 0 to {n - 1}, got node {node!r}"
            )
        if graph.has_edge(node, node):
            raise ValueError(f"a mixing matrix needs a graph without self loops, got one at node {node}")
    return n


def uniform(graph: Graph) -> Matrix:
    """Return the uniform weights: worker i gives 1/(d_i + 1) to itself and to each of its d_i in-neighbours.

    Rows always sum to 1; columns do on regular graphs.

    Parameters
    ----------
    graph
        A rank graph (nodes 0..n-1), directed or not; an arc j -> i lets worker i use the model of j.

    Returns
    -------
    ndarray of shape (n, n)
        W[i, j] is the weight that worker i gives to the model of worker j.

    Raises
    ------
    ValueError
        If the nodes are not 0..n-1, or a node has a self loop.
    """
    n = _ranks(graph)
    weights = np.eye(n)
    sources = graph.pred if isinstance(graph, nx.DiGraph) else graph.adj
    for i in range(n):
        weights[i, list(sources[i])] = 1.0
        weights[i] /= len(sources[i]) + 1
    return weights


def metropolis_hastings(graph: Graph) -> Matrix:
    """Return the Metropolis-Hastings weights: 1/(1 + max(d_i, d_j)) for neighbours, and the rest for oneself.

    Symmetric and doubly stochastic on every undirected graph.

    Parameters
    ----------
    graph
        An undirected rank graph (nodes 0..n-1).

    Returns
    -------
    ndarray of shape (n, n)
        W[i, j] is the weight that worker i gives to the model of worker j.

    Raises
    ------
    ValueError
        If the graph is directed, its nodes are not 0..n-1, or a node has a self loop.
    """
    n = _ranks(graph)
    if graph.is_directed():
        raise ValueError("metropolis-hastings needs an undirected graph, got a directed one")
    weights = np.zeros((n, n))
    for i, j in graph.edges():
        weights[i, j] = weights[j, i] = 1.0 / (1 + max(graph.degree[i], graph.degree[j]))
    np.fill_diagonal(weights, 1.0 - weights.sum(axis=1))
    return weights


def lazy(W: Matrix, self_weight: float = 0.5) -> Matrix:
    """Return θI + (1-θ)W: each worker keeps the share θ of its own model.

    With the default θ = 1/2 it is (W + I)/2, whose eigenvalues are at least 0 where W is symmetric.

    Parameters
    ----------
    W
        A mixing matrix of shape (n, n).
    self_weight
        θ, at least 0 and below 1.

    Raises
    ------
    ValueError
        If W is not square or θ is out of its range.
    """
    if not 0 <= self_weight < 1:
        raise ValueError(f"self_weight must be at least 0 and below 1, got {self_weight!r}")
    W = _square(W)
    return self_weight * np.eye(len(W)) + (1 - self_weight) * W


def lazy_uniform(graph: Graph) -> Matrix:
    """Return (W + I)/2 of the uniform weights; parameters and errors as for `uniform`."""
    return lazy(uniform(graph))


def lazy_metropolis_hastings(graph: Graph) -> Matrix:
    """Return (W + I)/2 of the Metropolis-Hastings weights; parameters and errors as for them."""
    return lazy(metropolis_hastings(graph))


MIXINGS: dict[str, Callable[[Graph], Matrix]] = {
    "uniform": uniform,
    "metropolis-hastings": metropolis_hastings,
    "lazy-uniform": lazy_uniform,
    "lazy-metropolis-hastings": lazy_metropolis_hastings,
}
"""Every rule for mixing weights by the name that a scenario calls it."""


def _square(W: Matrix) -> Matrix:
    """Return W as a float array, after checking that it is a finite square matrix."""
    W = np.asarray(W, dtype=np.float64)
    if W.ndim != 2 or W.shape[0] != W.shape[1] or W.size == 0:
        raise ValueError(f"a mixing matrix must be square, got shape {W.shape}")
    if not np.isfinite(W).all():
        row, column = np.argwhere(~np.isfinite(W))[0]
        raise ValueError(
            f"row {row} of the mixing matrix: weight {W[row, column]} of column {column} is not finite"
        )
    return W


def _check_symmetric(W: Matrix) -> None:
    off = np.abs(W - W.T)
    row, column = np.unravel_index(int(np.argmax(off)), off.shape)
    if off[row, column] > TOLERANCE:
        raise ValueError(
            f"row {row} of the mixing matrix: it is not symmetric, "
            f"weight {W[row, column]:.12g} of column {column} against {W[column, row]:.12g} the other way"
        )


def spectral_gap(W: Matrix) -> float:
    """Return 1 - ρ_s with ρ_s = ‖W - J‖₂, the largest singular value of W - J, where J = 11ᵀ/n.

    This is the definition used everywhere here. For a symmetric doubly stochastic W it equals one minus the
    second largest modulus of an eigenvalue; for any other doubly stochastic W it is at most that.

    Parameters
    ----------
    W
        A mixing matrix of shape (n, n).
    """
    W = _square(W)
    return float(1.0 - np.linalg.norm(W - 1.0 / len(W), 2))


def smallest_eigenvalue(W: Matrix) -> float:
    """Return λ_n, the smallest eigenvalue of a symmetric mixing matrix of shape (n, n).

    Raises
    ------
    ValueError
        If W is not square or not symmetric.
    """
    W = _square(W)
    _check_symmetric(W)
    return float(np.linalg.eigvalsh(W)[0])


def second_largest_eigenvalue_modulus(W: Matrix) -> float:
    """Return the second largest modulus of an eigenvalue of W, shape (n, n); 0 for n = 1.

    It is the factor by which a round shrinks the distance to consensus in the long run.
    """
    W = _square(W)
    moduli = np.sort(np.abs(np.linalg.eigvals(W)))
    return float(moduli[-2]) if len(W) > 1 else 0.0


def _check_doubly_stochastic(W: Matrix) -> None:
    if (W < 0).any():
        row, column = np.argwhere(W < 0)[0]
        raise ValueError(
            f"row {row} of the mixing matrix: weight {W[row, column]:.12g} of column {column} is negative"
        )
    for name, sums in (("row", W.sum(axis=1)), ("column", W.sum(axis=0))):
        worst = int(np.argmax(np.abs(sums - 1)))
        if abs(sums[worst] - 1) > TOLERANCE:
            raise ValueError(
                f"{name} {worst} of the mixing matrix: its weights sum to {sums[worst]:.12g}, not 1"
            )


def _check_connected(W: Matrix) -> None:
    """Raise unless every worker's model reaches worker 0 (and so, in a doubly stochastic W, every other)."""
    uses = W > 0
    reached = np.zeros(len(W), dtype=bool)
    frontier = reached.copy()
    frontier[0] = True
    while frontier.any():
        reached |= frontier
        frontier = uses[frontier].any(axis=0) & ~reached
    if not reached.all():
        row = int(np.argmin(reached))
        raise ValueError(
            f"row {row} of the mixing matrix: worker {row} is not connected to worker 0, "
            f"only {int(reached.sum())} of {len(W)} workers are"
        )


def check_mixing(W: Matrix, *, symmetric: bool, smallest_eigenvalue_above: float | None = None) -> None:
    """Check that a matrix mixes: doubly stochastic, connected, and without a second eigenvalue of modulus 1.

    Parameters
    ----------
    W
        The matrix, shape (n, n).
    symmetric
        Whether W must be symmetric too.
    smallest_eigenvalue_above
        A bound that the smallest eigenvalue must exceed by more than `TOLERANCE`, since on the bound itself
        rounding would decide (D² on a ring of even n with weights 1/3 sits exactly on its -1/3). Needs
        `symmetric`.

    Raises
    ------
    ValueError
        With the row and the figure that are wrong.
    """
    if smallest_eigenvalue_above is not None and not symmetric:
        raise ValueError(
            f"smallest_eigenvalue_above {smallest_eigenvalue_above!r} needs symmetric=True: "
            "only the eigenvalues of a symmetric matrix are surely real"
        )
    W = _square(W)
    _check_doubly_stochastic(W)
    if symmetric:
        _check_symmetric(W)
    _check_connected(W)
    modulus = second_largest_eigenvalue_modulus(W)
    if modulus >= 1 - TOLERANCE:
        raise ValueError(
            f"the mixing matrix has a second eigenvalue of modulus {modulus:.12g}: the workers never agree; "
            "give each worker a weight of its own (a lazy matrix does)"
        )
    if smallest_eigenvalue_above is not None:
        smallest = smallest_eigenvalue(W)
        if smallest <= smallest_eigenvalue_above + TOLERANCE:
            raise ValueError(
                f"the mixing matrix has the smallest eigenvalue {smallest:.12g}, which must be above "
                f"{smallest_eigenvalue_above:.12g}; a lazy matrix raises it"
            )
