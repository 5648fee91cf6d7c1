"""k-means against scikit-learn and by its own laws; entropy of positions at points where the answer is known."""

import math
from itertools import permutations

import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score
from torch import Tensor
from torch.nn.functional import normalize

from franca.eval.protocols.clusters import assign, kmeans
from franca.eval.protocols.position_entropy import expected_entropy, position_entropy


def blobs(count: int, rows: int, dim: int, noise: float = 0.05, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Rows around random points far from one another, and the point of each."""
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(count, dim, generator=generator)
    labels = torch.randint(count, (rows,), generator=generator)
    return points[labels] + noise * torch.randn(rows, dim, generator=generator), labels


def noise(rows: int, dim: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed))


class TestKMeans:
    @pytest.mark.parametrize("normalize_rows", [True, False])
    @pytest.mark.parametrize("seed", range(3))
    def test_partitions_blobs_as_scikit_learn_does(self, normalize_rows, seed) -> None:
        rows, labels = blobs(8, 600, 16)
        compared = normalize(rows, dim=1) if normalize_rows else rows
        reference = KMeans(8, n_init=5, random_state=0).fit(compared.numpy())
        found = kmeans(rows, 8, seed=seed, normalize=normalize_rows)
        assert adjusted_rand_score(labels, found.assignment) == 1
        assert adjusted_rand_score(reference.labels_, found.assignment) == 1
        assert found.inertia == pytest.approx(reference.inertia_, rel=1e-4)

    def test_inertia_is_scikit_learns_where_there_are_no_clusters(self) -> None:
        rows = noise(1500, 12)
        reference = KMeans(20, n_init=1, random_state=0, max_iter=100).fit(rows.numpy())
        found = [kmeans(rows, 20, 100, seed, normalize=False).inertia for seed in range(3)]
        assert found == pytest.approx([reference.inertia_] * 3, rel=0.02)

    def test_inertia_is_that_of_faiss(self) -> None:
        faiss = pytest.importorskip("faiss")
        rows = noise(3000, 10)
        reference = faiss.Kmeans(10, 20, niter=60, nredo=3, seed=1, max_points_per_centroid=1000)
        reference.train(rows.numpy())
        found = min(kmeans(rows, 20, 60, seed, normalize=False).inertia for seed in range(3))
        assert found == pytest.approx(reference.obj[-1], rel=0.01)

    @pytest.mark.parametrize("normalize_rows", [True, False])
    def test_centres_serve_for_other_rows(self, normalize_rows) -> None:
        rows, _ = blobs(6, 900, 8)
        some = kmeans(rows[:300] + 5, 6, 50, normalize=normalize_rows)
        found = assign(rows + 5, some.centres, normalize=normalize_rows, block=100)
        assert torch.equal(found[:300], some.assignment)
        compared = (normalize(rows + 5, dim=1) if normalize_rows else rows + 5).double()
        assert torch.equal(found, torch.cdist(compared, some.centres.double()).argmin(1))

    def test_many_clusters_start_from_a_bounded_sample(self, monkeypatch) -> None:
        monkeypatch.setattr("franca.eval.protocols.clusters.MOST_START_ROWS", 40)
        rows, labels = blobs(6, 900, 8)
        assert adjusted_rand_score(labels, kmeans(rows, 6, 100, seed=1).assignment) > 0.7
        assert kmeans(rows, 100, 2).assignment.unique().numel() > 60  # more clusters than the bound

    @pytest.mark.parametrize("normalize_rows", [True, False])
    def test_result_is_what_it_says(self, normalize_rows) -> None:
        """Every row has its nearest centre, every centre is the mean of its rows, inertia is the sum of squares."""
        rows = 3 * noise(400, 6) + 50
        found = kmeans(rows, 7, 300, normalize=normalize_rows)
        compared = (normalize(rows, dim=1) if normalize_rows else rows).double()
        squares = torch.cdist(compared, found.centres.double()).square()
        assert torch.equal(squares.argmin(1), found.assignment)
        assert squares.min(1).values.sum().item() == pytest.approx(found.inertia, rel=1e-3)
        means = torch.stack([compared[found.assignment == cluster].mean(0) for cluster in range(7)])
        torch.testing.assert_close(found.centres.double(), means, atol=1e-5, rtol=1e-5)

    def test_a_far_offset_costs_nothing(self) -> None:
        rows, labels = blobs(5, 200, 4)
        assert adjusted_rand_score(labels, kmeans(rows + 1000, 5, normalize=False).assignment) == 1

    def test_more_iterations_never_fit_worse(self) -> None:
        inertia = [kmeans(noise(600, 8), 12, steps).inertia for steps in range(6)]
        assert inertia == sorted(inertia, reverse=True)
        assert inertia[-1] < 0.97 * inertia[0]

    def test_same_seed_same_clusters_whatever_the_block(self) -> None:
        rows = noise(500, 8)
        first = kmeans(rows, 9, seed=3)
        for block in (1, 37, 500):
            again = kmeans(rows, 9, seed=3, block=block)
            assert torch.equal(again.assignment, first.assignment)
            torch.testing.assert_close(again.centres, first.centres)
            assert again.inertia == pytest.approx(first.inertia)
        assert not torch.equal(kmeans(rows, 9, seed=4).assignment, first.assignment)

    def test_random_state_is_left_alone(self) -> None:
        torch.manual_seed(0)
        expected = torch.rand(3)
        torch.manual_seed(0)
        kmeans(noise(50, 4), 5)
        assert torch.equal(torch.rand(3), expected)

    def test_length_of_a_row_plays_no_part_unless_asked(self) -> None:
        rows = noise(300, 5)
        stretched = rows * torch.rand(300, 1, generator=torch.Generator().manual_seed(1)).add(0.1) * 9
        assert adjusted_rand_score(kmeans(rows, 6).assignment, kmeans(stretched, 6).assignment) > 0.999
        far = torch.cat([rows, 1000 * rows[:1]])
        assert (kmeans(far, 6, normalize=False).assignment == kmeans(far, 6, normalize=False).assignment[-1]).sum() == 1

    def test_empty_clusters_move_to_where_they_are_needed(self, monkeypatch) -> None:
        """From a start with six equal centres."""
        rows, labels = blobs(6, 300, 8)
        monkeypatch.setattr("franca.eval.protocols.clusters._start", lambda rows, k, _: rows[torch.zeros(k).long()])
        found = kmeans(rows, 6, 100)
        assert (found.assignment.bincount(minlength=6) > 0).all()
        assert adjusted_rand_score(labels, found.assignment) > 0.7

    def test_edges(self) -> None:
        rows = noise(12, 3)
        assert kmeans(rows, 12).inertia == pytest.approx(0, abs=1e-9)
        assert kmeans(rows, 12).assignment.unique().numel() == 12
        one = kmeans(rows, 1, normalize=False)
        torch.testing.assert_close(one.centres[0], rows.mean(0))
        same = kmeans(torch.ones(10, 3), 4)
        assert same.inertia == 0
        assert kmeans(torch.zeros(10, 3), 4).inertia == 0
        assert torch.equal(kmeans(rows.half(), 3).assignment, kmeans(rows.half().float(), 3).assignment)

    def test_bad_input(self) -> None:
        rows = noise(10, 3)
        for k in (0, 11):
            with pytest.raises(ValueError, match=f"k={k} clusters of rows with shape"):
                kmeans(rows, k)
        with pytest.raises(ValueError, match=r"\(10, 3, 1\)"):
            kmeans(rows[..., None], 2)
        rows[7, 1] = math.nan
        with pytest.raises(ValueError, match="row 7 is NaN"):
            kmeans(rows, 2, block=4)


class TestPositionEntropy:
    def test_clusters_that_are_positions_have_none(self) -> None:
        found = position_entropy(torch.arange(12).expand(5, 12), 3, 4, 12)
        assert (found.entropy == 0).all()
        assert (found.mean, found.weighted_mean) == (0, 0)
        assert torch.equal(found.counts.flatten(1), 5 * torch.eye(12).long())

    def test_clusters_blind_to_position_have_all_of_it(self) -> None:
        """Large and tiny clusters alike: the raw entropy of tiny ones is far below log N."""
        generator = torch.Generator().manual_seed(0)
        chances = torch.tensor([0.003] * 20 + [0.06] * 16)
        assignment = torch.multinomial(chances, 80 * 64, replacement=True, generator=generator).view(80, 64)
        found = position_entropy(assignment, 8, 8, 36)
        assert found.normalised[:20].max() < 0.8
        assert found.mean == pytest.approx(1, abs=0.01)
        assert found.weighted_mean == pytest.approx(1, abs=0.005)
        assert found.ratio[:20].nanmean().item() == pytest.approx(1, abs=0.02)

    def test_rises_as_clusters_mix(self) -> None:
        generator = torch.Generator().manual_seed(0)
        places = torch.arange(36).expand(50, 36)
        anywhere = torch.randint(36, (50, 36), generator=generator)
        draws = torch.rand(50, 36, generator=generator)
        mixed = [position_entropy(torch.where(draws < share, anywhere, places), 6, 6, 36)
                 for share in (0, 0.1, 0.3, 0.6, 1)]  # fmt: skip
        for name in ("mean", "weighted_mean"):
            values = [getattr(found, name) for found in mixed]
            assert values == sorted(values)
            assert values[0] == 0
            assert values[-1] == pytest.approx(1, abs=0.01)

    def test_half_the_grid_has_one_bit_less(self) -> None:
        assignment = torch.arange(8).div(4, rounding_mode="floor").expand(6, 8)
        found = position_entropy(assignment, 2, 4, 2)
        assert found.entropy.tolist() == pytest.approx([math.log(4)] * 2)
        assert found.normalised.tolist() == pytest.approx([2 / 3] * 2)

    def test_expected_entropy_is_the_mean_over_all_draws(self) -> None:
        """Every order of two images of three patches, by hand."""
        cells = [0, 1, 2, 0, 1, 2]
        for n in range(7):
            drawn = [torch.tensor(order[:n]).bincount(minlength=3) for order in permutations(cells)] if n else []
            entropies = [torch.special.entr(counts / n).sum() for counts in drawn]
            mean = torch.stack(entropies).mean().item() if n else 0
            assert expected_entropy(torch.tensor([n]), 2, 3).item() == pytest.approx(mean, abs=1e-6)

    @pytest.mark.parametrize("n", [2, 10, 300, 5000, 25_599, 25_600])
    def test_expected_entropy_is_exact_for_many_patches(self, n) -> None:
        cells = torch.arange(256).repeat(100)
        generator = torch.Generator().manual_seed(n)
        drawn = [cells[torch.randperm(25_600, generator=generator)[:n]].bincount(minlength=256) for _ in range(40)]
        simulated = torch.stack([torch.special.entr(counts / n).sum() for counts in drawn])
        expected = expected_entropy(torch.tensor([n]), 100, 256).item()
        error = simulated.std().item() / math.sqrt(40)
        assert simulated.mean().item() == pytest.approx(expected, abs=4 * error + 2e-6)

    def test_clusters_too_small_to_tell_are_left_out(self) -> None:
        assignment = torch.tensor([[0, 0, 1, 0], [0, 0, 0, 0]])
        found = position_entropy(assignment, 2, 2, 3)
        assert found.size.tolist() == [7, 1, 0]
        assert found.ratio.isnan().tolist() == [False, True, True]
        assert found.mean == found.weighted_mean == found.ratio[0].item()
        assert (found.entropy[1:] == 0).all()

    def test_forms_of_the_assignment(self) -> None:
        assignment = torch.randint(4, (5, 2, 3), generator=torch.Generator().manual_seed(0))
        expected = position_entropy(assignment, 2, 3, 4)
        for form in (assignment.flatten(1), assignment.flatten(), assignment.int()):
            assert torch.equal(position_entropy(form, 2, 3, 4).counts, expected.counts)
        for cluster in range(4):
            assert torch.equal(expected.counts[cluster], (assignment == cluster).sum(0))

    def test_bad_input(self) -> None:
        assignment = torch.zeros(2, 6, dtype=torch.int64)
        for h, w in ((5, 1), (4, 3), (1, 1)):
            with pytest.raises(ValueError, match=f"12 patches on a grid of {h}x{w}"):
                position_entropy(assignment.view(-1), h, w, 1)
        for bad in (assignment + 3, assignment - 1, assignment.float()):
            with pytest.raises(ValueError, match="from 0 to 2"):
                position_entropy(bad, 2, 3, 3)
