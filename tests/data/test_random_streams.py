import pytest
import torch

from franca.data.random_streams import generator, shuffled, stream_seed


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 17, 64, 65, 1000])
def test_shuffled_is_a_permutation(length: int) -> None:
    assert sorted(shuffled(i, length, "key", 0) for i in range(length)) == list(range(length))


def test_shuffled_depends_on_the_key() -> None:
    orders = {tuple(shuffled(i, 50, *key) for i in range(50)) for key in (("a", 0), ("a", 1), ("b", 0))}
    assert len(orders) == 3


def test_shuffled_sends_every_position_everywhere() -> None:
    """Over 4000 permutations of 10 places each (from, to) pair is met about 400 times (standard deviation 19)."""
    met = torch.zeros(10, 10)
    for key in range(4000):
        for position in range(10):
            met[position, shuffled(position, 10, key)] += 1
    assert (met - 400).abs().max() < 100


def test_shuffled_leaves_no_neighbours_together() -> None:
    order = torch.tensor([shuffled(i, 5000, "key") for i in range(5000)]).float()
    assert abs(float(torch.corrcoef(torch.stack([order[1:], order[:-1]]))[0, 1])) < 0.06


def test_shuffled_works_for_hundreds_of_millions() -> None:
    length = 599_187_600
    drawn = {shuffled(i, length, "key") for i in range(500)}
    assert len(drawn) == 500
    assert min(drawn) < length / 50
    assert max(drawn) > length * 49 / 50


def test_positions_outside_are_refused() -> None:
    with pytest.raises(IndexError, match=r"position 5 is outside range\(5\)"):
        shuffled(5, 5, "key")


def test_streams_are_functions_of_their_whole_key() -> None:
    keys = [("a", 0), ("a", 1), ("b", 0), ("a", 0, 0), ("a0",), ("a", -1)]
    assert len({stream_seed(*key) for key in keys}) == len(keys)
    numbers = [torch.rand(3, generator=generator(*key)) for key in (*keys, keys[0])]
    assert torch.equal(numbers[0], numbers[-1])
    assert not torch.equal(numbers[0], numbers[1])


def test_seeds_never_change() -> None:
    """A run started with an earlier release goes on with the same images."""
    assert stream_seed("crops", 0, 1) == 6806503315969958612
    assert [shuffled(i, 10, "order", 0, 0) for i in range(10)] == [3, 7, 2, 6, 4, 8, 0, 1, 9, 5]
