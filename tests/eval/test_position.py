"""The position predictors against reference values, independent solvers, and features with a position planted in."""

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LinearRegression
from torch import Tensor

from franca.eval.protocols import position
from franca.eval.protocols.position import (
    PositionPredictor,
    fit_linear,
    fit_sigmoid,
    grid_positions,
    position_error,
    score_positions,
)

FITS = (fit_linear, fit_sigmoid)


def planted(images: int, h: int, w: int, dim: int, noise: float, seed: int = 0) -> Tensor:
    """Noise with the row and the column along `plane`, (I, h, w, D)."""
    content = noise * torch.randn(images, h, w, dim, generator=torch.Generator().manual_seed(seed))
    return content + ((grid_positions(h, w).float() - 0.5) @ plane(dim).T).view(h, w, dim)


def plane(dim: int) -> Tensor:
    """Two random orthonormal directions, (D, 2)."""
    return torch.linalg.qr(torch.randn(dim, 2, generator=torch.Generator().manual_seed(7))).Q


def removed(features: Tensor, directions: Tensor) -> Tensor:
    """Features without their part along directions (D, n)."""
    basis = torch.linalg.qr(directions).Q.to(features)
    return features - features @ basis @ basis.T


class TestGrid:
    def test_equals_the_reference(self, parity_dir) -> None:
        with np.load(parity_dir / "rasa.npz") as file:
            target = torch.from_numpy(file["train/target"])
        side = math.isqrt(target.shape[1])
        torch.testing.assert_close(grid_positions(side, side).float().expand_as(target), target)

    def test_rows_first_and_each_side_by_its_own_length(self) -> None:
        expected = [[0, 0], [0, 0.5], [0, 1], [1, 0], [1, 0.5], [1, 1]]
        assert grid_positions(2, 3).tolist() == expected
        assert grid_positions(1, 2).tolist() == [[0.5, 0], [0.5, 1]]
        with pytest.raises(ValueError, match="0x3"):
            grid_positions(0, 3)


class TestScore:
    def test_equals_the_reference(self, parity_dir) -> None:
        with np.load(parity_dir / "rasa.npz") as file:
            read = {name: torch.from_numpy(file[name]) for name in file.files if name.startswith(("head/", "train/"))}
        features = read["head/out_pre_layers_only"]
        predictor = PositionPredictor(read["head/weights/pos_pred.weight"], torch.zeros(2), sigmoid=True)
        side = math.isqrt(features.shape[1])
        score = score_positions(predictor, features, (side, side))
        assert score.mse == pytest.approx(read["train/mse"].item(), abs=5e-6)
        assert 2 * score.mse == pytest.approx(read["train/paper_Lpos"].item(), abs=5e-6)
        torch.testing.assert_close(predictor(features), read["head/pos_prediction"], atol=5e-6, rtol=0)

    def test_one_answer_for_all_patches_is_chance(self) -> None:
        score = score_positions(PositionPredictor(torch.zeros(2, 3), torch.full((2,), 0.5)), torch.randn(2, 5, 4, 3))
        assert score.rmse == pytest.approx(score.chance_rmse)
        assert score.r2 == pytest.approx(0)
        assert (score.predicted == 0.5).all()
        positions = grid_positions(5, 4)
        assert score.chance_rmse == pytest.approx((positions - positions.mean(0)).square().mean().sqrt().item())

    def test_rows_and_columns_are_told_apart(self) -> None:
        """A predictor that knows the row alone."""
        features = grid_positions(4, 6).view(1, 4, 6, 2)
        score = score_positions(PositionPredictor(torch.tensor([[1.0, 0], [0, 0]]), torch.tensor([0, 0.5])), features)
        assert (score.rmse_row, score.r2_row) == (0, 1)
        assert score.r2_column == pytest.approx(0)
        assert score.mse == pytest.approx(score.rmse_column**2 / 2)
        torch.testing.assert_close(score.predicted[..., 0], features[0, ..., 0])

    def test_a_single_row_has_no_r2(self) -> None:
        score = position_error(planted(30, 1, 8, 5, 0.1), planted(30, 1, 8, 5, 0.1, seed=1))
        assert math.isnan(score.r2_row)
        assert score.r2_column > 0.8
        assert score.rmse_row == pytest.approx(0, abs=1e-12)
        assert score.r2 == pytest.approx(score.r2_column)


class TestFits:
    def test_linear_equals_scikit_learn(self) -> None:
        train, test = (planted(6, 5, 7, 20, 0.5, seed) + 3 for seed in (0, 1))
        targets = grid_positions(5, 7).repeat(6, 1).numpy()
        reference = LinearRegression().fit(train.reshape(-1, 20).double().numpy(), targets)
        expected = reference.predict(test.reshape(-1, 20).double().numpy())
        found = fit_linear(train)(test).view(-1, 2)
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-7)
        assert position_error(train, test).mse == pytest.approx(np.square(expected - targets).mean())

    @pytest.mark.parametrize("shift", [0.0, 300.0])
    def test_sigmoid_is_stationary_and_beats_its_start(self, shift) -> None:
        """No direction of the weights lowers the loss on the images it was fitted to."""
        features = planted(8, 5, 5, 12, 0.3).double()
        features[..., 0] += shift
        predictor = fit_sigmoid(features)
        weight = predictor.weight.clone().requires_grad_()
        loss = ((features @ weight.T).sigmoid() - grid_positions(5, 5).view(5, 5, 2)).square().mean()
        (slope,) = torch.autograd.grad(loss, weight)
        assert loss.item() == pytest.approx(score_positions(predictor, features).mse)
        rms = features.square().mean(dim=(0, 1, 2)).sqrt()
        assert (slope / rms).abs().max() < 1e-6  # per unit of the number under the sigmoid
        for seed in range(20):
            nudge = 0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed))
            moved = PositionPredictor(predictor.weight + nudge, predictor.bias, sigmoid=True)
            assert score_positions(moved, features).mse > loss.item()

    def test_sigmoid_finds_the_map_that_made_the_features(self) -> None:
        """Features whose sigmoid is the position, up to a little noise: a straight line misses what it finds."""
        positions = grid_positions(8, 8).clamp(0.01, 0.99)
        generator = torch.Generator().manual_seed(0)
        train, test = (
            torch.cat([positions.logit().expand(20, 64, 2), torch.randn(20, 64, 6, generator=generator)], dim=2)
            for _ in range(2)
        )
        sigmoid = position_error(train, test, "sigmoid", grid=(8, 8))
        linear = position_error(train, test, "linear", grid=(8, 8))
        assert sigmoid.rmse < 0.015 < 0.05 < linear.rmse

    def test_separable_corners_settle(self) -> None:
        """On 2x2 patches all targets are 0 or 1, and the best weights are infinite."""
        features = planted(6, 2, 2, 4, 0.01)
        assert position_error(features, planted(6, 2, 2, 4, 0.01, seed=1), "sigmoid").rmse < 0.01

    def test_an_unsettled_fit_is_an_error(self, monkeypatch) -> None:
        monkeypatch.setattr(position, "MAX_ITERATIONS", 2)
        with pytest.raises(RuntimeError, match="not settled after 2 steps"):
            fit_sigmoid(planted(8, 4, 4, 12, 0.5))

    @pytest.mark.parametrize("fit", FITS)
    @pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
    def test_any_rank_is_fitted(self, fit, dtype) -> None:
        """Directions taken out (as RASA does), features that are constant, equal or all zero: the rest decides."""
        train, test = (planted(40, 6, 6, 16, 0.2, seed).double() for seed in (0, 1))
        directions = torch.randn(16, 4, generator=torch.Generator().manual_seed(3)).double()
        flat = [removed(features, directions) for features in (train, test)]
        basis = torch.linalg.svd(flat[0].flatten(0, 2), full_matrices=False).Vh[:12].T
        full_rank = score_positions(fit(flat[0] @ basis), flat[1] @ basis)
        wider = [torch.cat([f, f[..., :2], torch.zeros_like(f)], dim=-1).to(dtype) for f in flat]
        found = score_positions(fit(wider[0]), wider[1])
        assert found.mse == pytest.approx(full_rank.mse, rel=0.02 if dtype is torch.float16 else 1e-4)
        constant = torch.full((4, 6, 6, 5), 2.0, dtype=dtype)
        assert score_positions(fit(constant), constant).mse == pytest.approx(full_rank.chance_rmse**2)
        assert score_positions(fit(0 * constant), constant).mse == pytest.approx(full_rank.chance_rmse**2)

    @pytest.mark.parametrize("predictor", ["linear", "sigmoid"])
    def test_position_is_found_where_it_is_and_only_there(self, predictor) -> None:
        train, test = (planted(40, 8, 8, 16, 0.02, seed) for seed in (0, 1))
        before = position_error(train, test, predictor)
        assert before.r2 > 0.9
        after = position_error(removed(train, plane(16)), removed(test, plane(16)), predictor)
        assert abs(after.r2) < 0.05
        assert after.rmse == pytest.approx(after.chance_rmse, rel=0.02)

    def test_noise_is_not_mistaken_for_position(self) -> None:
        """As many features as a fit on the same patches could use to look good; other images tell."""
        train, test = (torch.randn(5, 6, 6, 150, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
        predictor = fit_linear(train)
        assert score_positions(predictor, train).r2 > 0.5
        assert score_positions(predictor, test).r2 < 0


class TestReading:
    @pytest.mark.parametrize("fit", FITS)
    def test_blocks_and_forms_change_nothing(self, fit) -> None:
        features = planted(7, 3, 4, 8, 0.3)
        expected = fit(features)
        for given in (features.flatten(1, 2), features.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)):
            grid = (3, 4) if given.ndim == 3 else None
            for block in (1, 3, 100):
                found = fit(given, grid, block)
                torch.testing.assert_close(found.weight, expected.weight, rtol=1e-5, atol=1e-6)
                score = score_positions(expected, given, grid, block)
                assert score.mse == pytest.approx(score_positions(expected, features).mse)

    def test_reads_a_memory_mapped_file(self, tmp_path) -> None:
        features = planted(6, 3, 3, 8, 0.3).half()
        features.numpy().tofile(tmp_path / "features.bin")
        mapped = torch.from_file(str(tmp_path / "features.bin"), size=features.numel(), dtype=torch.float16)
        mapped = mapped.view_as(features)
        score = position_error(mapped[::2], mapped[1::2])
        assert score.mse == position_error(features[::2], features[1::2]).mse

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    @pytest.mark.parametrize("fit", FITS)
    def test_names_the_image_that_is_not_finite(self, fit, value) -> None:
        features = planted(9, 3, 3, 4, 0.3)
        broken = features.clone()
        broken[5, 2, 0, 1] = value
        for block in (2, 16):
            with pytest.raises(ValueError, match="image 5 are NaN or infinite"):
                fit(broken, block=block)
        with pytest.raises(ValueError, match="image 5 are NaN"):
            position_error(features, broken)

    def test_too_few_images_are_counted(self) -> None:
        with pytest.raises(ValueError, match=r"2 images of 3x3 patches.*20 features.*at least 3"):
            fit_linear(torch.randn(2, 3, 3, 20))
        fit_linear(torch.randn(3, 3, 3, 20))
        with pytest.raises(ValueError, match="at least 2"):
            fit_sigmoid(torch.randn(1, 9, 9, 2))

    def test_shapes_and_names_that_do_not_fit(self) -> None:
        train = torch.randn(6, 3, 3, 4)
        with pytest.raises(ValueError, match=r"shape \(6, 9, 4\) with grid=\(2, 4\)"):
            fit_linear(train.flatten(1, 2), (2, 4))
        with pytest.raises(ValueError, match="grid=None"):
            fit_linear(train.flatten(1, 2))
        with pytest.raises(ValueError, match=r"grid=\(9, 1\)"):
            fit_linear(train, (9, 1))
        with pytest.raises(ValueError, match="4 features per patch to fit on and 3 to score"):
            position_error(train, train[..., :3])
        with pytest.raises(ValueError, match="choose one of linear, sigmoid"):
            position_error(train, train, "mlp")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="no position to tell"):
            score_positions(fit_linear(train), torch.randn(6, 1, 1, 4))
