"""Components: equal to the naive union-find, whatever the order of the edges."""

import numpy as np
import pytest

from franca.data.preparation.components import Components


def naive(n: int, edges: np.ndarray) -> list[int]:
    """Least member of each number's component, by spreading labels until nothing changes."""
    label = list(range(n))
    while True:
        before = list(label)
        for first, second in edges.tolist():
            label[first] = label[second] = min(label[first], label[second])
        if label == before:
            return label


@pytest.mark.parametrize("seed", range(6))
def test_equal_to_the_naive_union_find(seed: int) -> None:
    random = np.random.default_rng(seed)
    n = 60
    edges = random.integers(0, n, (int(random.integers(0, 90)), 2))
    components = Components(n)
    forest = [components.join(part[:, 0], part[:, 1]) for part in np.array_split(edges, 4)]
    found = components.roots(np.arange(n)).tolist()
    assert found == naive(n, edges)
    joined = np.concatenate(forest)
    assert len(joined) == n - len(set(found))  # one edge for each join: a forest
    again = Components(n)
    again.join(*random.permutation(joined).T)
    assert again.roots(np.arange(n)).tolist() == found


def test_a_long_chain_and_a_clique() -> None:
    chain = np.arange(10_000)
    components = Components(len(chain))
    components.join(chain[1:], chain[:-1])
    assert not components.roots(chain).any()
    everyone = np.array([(i, j) for i in range(50) for j in range(50)])
    clique = Components(60)
    assert len(clique.join(everyone[:, 0], everyone[:, 1])) == 49
    assert clique.roots(np.arange(60)).tolist() == [0] * 50 + list(range(50, 60))
