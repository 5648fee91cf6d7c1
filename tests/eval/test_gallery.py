"""How pictures are put together: proportions, enlargement, overlays, colours of labels."""

import numpy as np
import pytest
import torch
from PIL import Image

from franca.eval.figures.gallery import GAP, TALLEST, _row_heights, image_grid
from franca.eval.figures.regions import by_size, displayed, enlarged, label_colour, label_colours, mixed


def plain(height: int, width: int, colour=(1.0, 0.0, 0.0)) -> np.ndarray:
    return np.broadcast_to(np.array(colour), (height, width, 3))


class TestImageGrid:
    def test_images_keep_their_proportions(self, tmp_path) -> None:
        """Measured in the file: pure colours are found again with the sides of the images."""
        colours = {"wide": (1.0, 0.0, 0.0), "tall": (0.0, 0.0, 1.0), "square": (0.0, 1.0, 0.0)}
        sizes = {"wide": (30, 90), "tall": (80, 40), "square": (50, 50)}
        images = [plain(*sizes[name], colours[name]) for name in colours]
        image_grid(tmp_path / "grid.png", {"image": images, "map": images}, "Title", columns=2)
        pixels = np.asarray(Image.open(tmp_path / "grid.png").convert("RGB")).astype(int)
        for name, colour in colours.items():
            found = (np.abs(pixels - 255 * np.array(colour)) < 8).all(axis=-1)
            columns, rows = found.any(axis=0).sum(), found.any(axis=1).sum() / 2  # two rows of it
            height, width = sizes[name]
            assert columns / rows == pytest.approx(width / height, rel=0.04), name

    def test_blocks_fill_the_width_and_a_short_last_one_is_no_taller(self) -> None:
        heights = _row_heights([[1.5, 1.5, 0.75], [1.0]], 6.0)
        assert heights[0] * 3.75 + 2 * GAP == pytest.approx(6.0)
        assert heights[1] == heights[0]
        assert _row_heights([[0.5]], 6.0) == [TALLEST]

    def test_everything_is_drawn(self, tmp_path) -> None:
        """More images, a legend, a row that ends early: each changes the picture; the same input doesn't."""
        images = [plain(20, 30), plain(30, 20), plain(20, 20)]
        sizes = {}
        for name, rows, settings in (
            ("one block", {"a": images}, {}),
            ("again", {"a": images}, {}),
            ("two blocks", {"a": images}, {"columns": 2}),
            ("legend", {"a": images}, {"legend": {f"class {i}": label_colour(i) for i in range(40)}}),
            ("short row", {"a": images, "b": images[:1]}, {"column_titles": ["x", "y", "z"]}),
        ):
            image_grid(tmp_path / f"{name}.png", rows, "Title", **settings)
            with Image.open(tmp_path / f"{name}.png") as picture:
                sizes[name] = picture.size
        assert (tmp_path / "one block.png").read_bytes() == (tmp_path / "again.png").read_bytes()
        heights = {name: height for name, (_, height) in sizes.items()}
        assert len({width for width, _ in sizes.values()}) == 1
        assert len(set(heights.values())) == 4


class TestRegions:
    def test_every_pixel_has_the_value_of_its_patch(self) -> None:
        grid = torch.arange(6).view(2, 3)
        large = enlarged(grid, 4, 9)
        assert large.tolist() == [[0] * 3 + [1] * 3 + [2] * 3] * 2 + [[3] * 3 + [4] * 3 + [5] * 3] * 2
        assert enlarged(torch.rand(2, 3, 3), 28, 42).shape == (28, 42, 3)

    @pytest.mark.parametrize("channels", [1, 3, 4, 7])
    def test_any_number_of_channels_can_be_shown(self, channels) -> None:
        pixels = torch.randint(256, (channels, 5, 6), dtype=torch.uint8)
        shown = displayed(pixels)
        assert shown.shape == (5, 6, 3)
        np.testing.assert_allclose(255 * shown[..., 1], pixels[min(1, channels - 1)], atol=1e-4)

    def test_overlays_mix_and_leave_out(self) -> None:
        image, colours = np.full((1, 2, 3), 0.2), np.array([[[1.0, 0, 0], [np.nan] * 3]])
        np.testing.assert_allclose(mixed(image, colours, 0.75)[0, 0], [0.8, 0.05, 0.05])
        np.testing.assert_allclose(mixed(image, colours, 0.75, left_out=0.5)[0, 1], 0.5)
        np.testing.assert_allclose(mixed(image, colours, 0.75, left_out=None)[0, 1], 0.2)
        np.testing.assert_array_equal(mixed(image, colours, 1.0)[0, 0], [1, 0, 0])

    def test_labels_have_colours_of_their_own(self) -> None:
        colours = np.array([label_colour(number) for number in range(60)])
        distances = np.linalg.norm(colours[:, None] - colours[None], axis=-1) + 9 * np.eye(60)
        assert distances.min() > 0.02
        assert distances[:16, :16].min() > 0.15
        assert ((colours >= 0) & (colours <= 1)).all()

    def test_void_has_no_colour(self) -> None:
        found = label_colours(torch.tensor([[0, 255], [3, 0]], dtype=torch.uint8), void=255)
        assert found.isnan().all(dim=-1).tolist() == [[False, True], [False, False]]
        assert tuple(found[1, 0].tolist()) == pytest.approx(label_colour(3))
        assert label_colours(torch.full((2, 2), 255), void=255).isnan().all()

    def test_numbers_of_clusters_follow_their_sizes(self) -> None:
        first, second = torch.tensor([[7, 2], [2, 9]]), torch.tensor([[2, 9, 4]])
        assert [one.tolist() for one in by_size([first, second])] == [[[2, 0], [0, 1]], [[0, 1, 3]]]
        renamed = [torch.tensor([5, 0, 8, 9, 1, 2, 3, 4, 6, 7])[one] for one in (first, second)]
        for one, other in zip(by_size([first, second]), by_size(renamed), strict=True):
            assert torch.equal(one, other)
