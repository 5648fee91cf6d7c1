"""Pictures as a protocol: what is drawn is fixed by images and features, at any size, by any backbone."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from franca.eval.backbones import Backbone
from franca.eval.context import Context, Engine
from franca.eval.datasets import VOID, OpenedSplit
from franca.eval.errors import EvalError
from franca.eval.figures import sheets, short_name
from franca.eval.figures.regions import NOTHING
from franca.eval.picture_input import Fit, attention_maps, load_pictures, patch_grids, view_for
from franca.eval.protocol import Task
from franca.eval.protocols.pictures import KINDS, PicturesConfig, draw, run, sheet_of
from franca.eval.views import Squash

CPU = torch.device("cpu")
SMALL = {"size": 42, "images": 3, "clusters": 3}


class Masked:
    """A source of images with masks: the class is whether red is above its middle."""

    def __init__(self, source) -> None:
        self.source, self.classes, self.labels = source, ["dark", "bright"], None
        self.load, self.name = source.load, source.name

    def __len__(self) -> int:
        return len(self.source)

    def mask(self, index: int) -> Tensor:
        mask = (self.source.load(index)[0] > 127).to(torch.uint8)
        mask[:3] = VOID
        return mask


class Halves(nn.Module):
    """Patch features that are the mean colour, seen from another side: rotated, or with the other sign."""

    patch_size = 14

    def __init__(self, turn: Tensor) -> None:
        super().__init__()
        self.register_buffer("turn", turn)

    def forward_features(self, images: Tensor) -> dict[str, Tensor]:
        colours = nn.functional.avg_pool2d(images, 14).flatten(2).transpose(1, 2)
        return {"x_norm_patchtokens": colours @ self.turn}


@pytest.fixture
def engine(model) -> Engine:
    return Engine(Backbone(model, "made/by/test.pth"), CPU)


@pytest.fixture
def make_context(tmp_path: Path, engine: Engine):
    def make(name: str, used: Engine = engine, **settings) -> Context:
        folder = tmp_path / name
        folder.mkdir()
        return Context(used, None, folder, **settings)

    return make


def opened(source) -> OpenedSplit:
    return OpenedSplit("made", "val", source, "hash")


def pixels(file: Path) -> np.ndarray:
    with Image.open(file) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def assert_same(one: sheets.Drawing, other: sheets.Drawing) -> None:
    """Up to rounding, which may move a patch from one cluster to another."""
    for name, row in one.rows.items():
        for left, right in zip(row, other.rows[name], strict=True):
            assert (np.abs(left - right).max(axis=-1) > 0.01).mean() < 0.02, name


class TestInput:
    @pytest.mark.parametrize(("height", "width"), [(375, 500), (500, 375), (100, 100), (30, 3000), (3, 4)])
    def test_proportions_are_kept_as_nearly_as_patches_allow(self, height, width) -> None:
        view = Fit(518, 14)
        image = torch.zeros(3, height, width, dtype=torch.uint8)
        found = view(image).shape[1:]
        assert all(side % 14 == 0 and side >= 14 for side in found)
        assert max(found) == 518
        expected = 518 * min(height, width) / max(height, width)
        assert abs(min(found) - expected) <= 7 or min(found) == 14
        assert view.mask(image[0]).shape == found

    def test_size_0_is_that_of_the_file(self) -> None:
        assert Fit(0, 16).sides(torch.zeros(3, 480, 359)) == [480, 352]
        image = torch.randint(256, (3, 28, 42), dtype=torch.uint8)
        assert torch.equal(Fit(0, 14)(image), image)

    def test_masks_stay_on_their_images(self) -> None:
        image = torch.zeros(3, 60, 90, dtype=torch.uint8)
        image[:, 20:, 30:60] = 255
        view = Fit(168, 14)
        agree = (view(image)[0] > 127) == view.mask(image[0]).bool()
        assert agree.double().mean() > 0.98

    def test_a_network_that_does_not_tell_its_patch_gets_squares(self, engine) -> None:
        assert view_for(engine, 42) == Fit(42, 14)
        assert view_for(Engine(Backbone(lambda images: images), CPU), 42) == Squash(42)

    @pytest.mark.parametrize("batch_size", [1, 2, 64])
    def test_features_do_not_depend_on_who_shares_the_batch(self, engine, make_source, batch_size) -> None:
        pictures = load_pictures(make_source(7), range(7), Fit(42, 14))
        assert len({picture.pixels.shape for picture in pictures}) > 1
        grids, maps = patch_grids(engine, pictures, batch_size), attention_maps(engine, pictures, batch_size)
        for picture, grid, attention in zip(pictures, grids, maps, strict=True):
            alone = engine.tokens(picture.pixels[None])[-1].patches[0]
            torch.testing.assert_close(grid, alone)
            assert attention.shape == (2, *grid.shape[:2])
            assert grid.shape[:2] == tuple(side // 14 for side in picture.pixels.shape[1:])

    def test_unreadable_images_are_left_out(self, make_source, caplog) -> None:
        pictures = load_pictures(make_source(5, broken=(1, 3)), range(5), Fit(42, 14))
        assert [picture.number for picture in pictures] == [0, 2, 4]
        assert "image 1" in caplog.text


class TestFiles:
    @pytest.mark.slow
    def test_one_file_for_each_kind_the_same_each_time(self, make_context, make_source) -> None:
        split = opened(Masked(make_source(5)))
        first, again = (make_context(name) for name in ("first", "again"))
        for context in (first, again):
            assert list(run(context, Task(None, split), PicturesConfig(**SMALL))) == []
        assert {file.name for file in first.output.iterdir()} == {f"{kind}.png" for kind in KINDS}
        for file in first.output.iterdir():
            assert file.read_bytes() == (again.output / file.name).read_bytes(), file.name

    def test_many_images_go_into_several_files(self, make_context, make_source) -> None:
        config = PicturesConfig(**SMALL | {"images": 9}, kinds=["pca"], columns=1)
        files = draw(make_context("many"), opened(make_source(9)), config)
        assert [file.name for file in files] == ["pca.png", "pca-2.png", "pca-3.png"]

    def test_several_models_share_a_file(self, make_context, make_source) -> None:
        config = PicturesConfig(**SMALL, kinds=["pca"], beside=["colour"])
        alone = PicturesConfig(**SMALL, kinds=["pca"])
        one, two = (pixels(draw(make_context(name), opened(make_source(4)), settings)[0])
                    for name, settings in (("alone", alone), ("two", config)))  # fmt: skip
        assert two.shape[0] > 1.2 * one.shape[0]

    @pytest.mark.parametrize("kind", ["pca", "foreground", "clusters", "masks"])
    def test_a_slice_is_what_a_model_of_these_features_alone_shows(self, make_source, kind) -> None:
        """Features of noise behind the colours, cut off again by --slice d/2, the widest of two that are asked for."""
        source = opened(Masked(make_source(3)))

        def drawing(name: str, turn: Tensor, slices: tuple[int, ...]) -> sheets.Drawing:
            context = Context(Engine(Backbone(Halves(turn), "colours"), CPU), None, Path(name), slices=slices)
            return sheets.DRAWINGS[kind](sheet_of(context, source, PicturesConfig(**SMALL)))

        noise = torch.randn(3, 3, generator=torch.Generator().manual_seed(0)) * 3
        alone, cut, uncut = (
            drawing("alone", torch.eye(3), (1,)),
            drawing("cut", torch.cat([torch.eye(3), noise], dim=1), (4, 2)),
            drawing("uncut", torch.cat([torch.eye(3), noise], dim=1), (1,)),
        )
        assert_same(alone, cut)
        assert cut.title == f"{alone.title} (first d/2 features)"
        if kind != "masks":  # fewer patches than clusters: each is its own, whatever its features
            with pytest.raises(AssertionError):
                assert_same(alone, uncut)

    def test_a_slice_of_no_feature_is_refused(self, make_context, make_source) -> None:
        with pytest.raises(EvalError, match=r"--slice d/32: .* width 16"):
            draw(make_context("none", slices=(32,)), opened(make_source(2)), PicturesConfig(**SMALL, kinds=["pca"]))

    @pytest.mark.parametrize(("slices", "last"), [((1,), "d/16 = 6"), ((), "d/64 = 1"), ((1, 32), "d/32 = 3")])
    def test_the_slices_that_are_drawn(self, make_context, make_source, slices, last) -> None:
        """Those of Fig. 3, all there are, or those that were asked for."""
        context = Context(Engine(Backbone(Halves(torch.ones(3, 96)), "wide"), CPU), None, Path("none"), slices=slices)
        rows = sheets.pca_of_slices(sheet_of(context, opened(make_source(2)), PicturesConfig(**SMALL))).rows
        assert list(rows)[-1] == last


class TestSheets:
    @pytest.fixture
    def sheet(self, engine, make_source) -> sheets.Sheet:
        source = Masked(make_source(4))
        seen = sheets.Seen("a", engine, load_pictures(source, range(4), Fit(56, 14)), 8)
        look = sheets.Look(over=False, opacity=0.6, threshold=None, heads=0, clusters=4, seed=0)
        return sheets.Sheet([seen], look, source.classes)

    @pytest.mark.parametrize("kind", KINDS)
    def test_maps_have_the_size_of_their_images(self, sheet, kind) -> None:
        drawing = sheets.DRAWINGS[kind](sheet)
        for name, row in drawing.rows.items():
            assert [one.shape for one in row] == [one.shape for one in sheet.images], name
            assert all(np.isfinite(one).all() and 0 <= one.min() <= one.max() <= 1 for one in row), name

    @pytest.mark.parametrize("kind", KINDS)
    def test_batches_change_nothing(self, sheet, kind) -> None:
        (seen,) = sheet.models
        alone = replace(sheet, models=[sheets.Seen(seen.name, seen.engine, seen.pictures, 1)])
        assert_same(sheets.DRAWINGS[kind](alone), sheets.DRAWINGS[kind](sheet))

    @pytest.mark.parametrize("kind", ["pca", "foreground", "slices", "clusters", "masks"])
    def test_rotated_and_negated_features_give_the_same_picture(self, sheet, kind) -> None:
        rotation = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(3))).Q
        turns = [torch.eye(3), -torch.eye(3)]
        if kind != "slices":  # the first features of rotated ones are others
            turns.append(rotation)
        drawings = []
        for turn in turns:
            used = Engine(Backbone(Halves(turn), "colours"), CPU)
            seen = sheets.Seen("colours", used, sheet.models[0].pictures, 8)
            drawings.append(sheets.DRAWINGS[kind](replace(sheet, models=[seen])))
        for other in drawings[1:]:
            assert_same(drawings[0], other)

    @pytest.mark.parametrize("kind", ["pca", "foreground", "masks"])
    def test_overlays_mix_with_the_image(self, sheet, kind) -> None:
        """What has no colour (background, void) is the image itself there, and grey below it."""
        drawings = {
            opacity: sheets.DRAWINGS[kind](replace(sheet, look=replace(sheet.look, over=True, opacity=opacity)))
            for opacity in (0.0, 0.5, 1.0)
        }
        below = sheets.DRAWINGS[kind](sheet)
        name = list(below.rows)[1]
        for number, image in enumerate(sheet.images):
            rows = {opacity: drawing.rows[name][number] for opacity, drawing in drawings.items()}
            np.testing.assert_allclose(rows[0.0], image, atol=1e-6)
            np.testing.assert_allclose(rows[0.5], (rows[0.0] + rows[1.0]) / 2, atol=1e-6)
            coloured = (below.rows[name][number] != NOTHING).any(axis=-1)
            np.testing.assert_allclose(rows[1.0][coloured], below.rows[name][number][coloured], atol=1e-6)
            np.testing.assert_allclose(rows[1.0][~coloured], image[~coloured], atol=1e-6)

    def test_rows_are_named_by_what_they_show(self, sheet) -> None:
        assert list(sheets.attention(sheet).rows) == ["image", "mean of heads", "head 1", "head 2"]
        assert list(sheets.pca_of_slices(sheet).rows) == [
            "image",
            "d = 16",
            "d/2 = 8",
            "d/4 = 4",
            "d/8 = 2",
            "d/16 = 1",
        ]

    def test_clusters_get_the_class_of_most_of_their_pixels(self, sheet) -> None:
        (seen,) = sheet.models
        named = sheets.named_clusters(seen, sheet)
        counts = torch.zeros(sheets.NAMED_CLUSTERS, 2)
        clusters = seen.clusters(sheets.NAMED_CLUSTERS, 0)
        for picture, labels in zip(seen.pictures, clusters, strict=True):
            for row in range(picture.mask.shape[0]):
                for column in range(picture.mask.shape[1]):
                    if picture.mask[row, column] != VOID:
                        counts[labels[row // 14, column // 14], picture.mask[row, column].long()] += 1
        for labels, classes in zip(clusters, named, strict=True):
            assert torch.equal(classes, counts.argmax(dim=1)[labels])

    def test_the_mask_is_drawn_as_it_is_and_named(self, sheet) -> None:
        drawing = sheets.masks(sheet)
        assert list(drawing.legend) == ["dark", "bright", "void"]
        mask, shown = sheet.models[0].pictures[0].mask, drawing.rows["mask"][0]
        for number, name in ((0, "dark"), (1, "bright"), (VOID, "void")):
            np.testing.assert_allclose(
                shown[mask == number], np.broadcast_to(drawing.legend[name], shown[mask == number].shape), atol=1e-6
            )


class TestRefusals:
    def test_kinds_that_cannot_be_drawn_are_left_out_with_a_reason(self, make_context, make_source, caplog) -> None:
        used = Engine(Backbone(Halves(torch.eye(3)), "colours"), CPU)
        config = PicturesConfig(**SMALL, kinds=["masks", "attention", "pca"])
        files = draw(make_context("some", used), opened(make_source(3)), config)
        assert [file.name for file in files] == ["pca.png"]
        assert "no picture of masks: the images have no masks" in caplog.text
        assert "no picture of attention: " in caplog.text

    def test_nothing_to_draw_is_an_error(self, make_context, make_source) -> None:
        with pytest.raises(EvalError, match="masks: the images have no masks"):
            draw(make_context("none"), opened(make_source(3)), PicturesConfig(**SMALL, kinds=["masks"]))

    def test_without_matplotlib_the_extra_is_named(self, make_context, make_source, monkeypatch) -> None:
        monkeypatch.setattr("franca.eval.figures.can_draw", lambda: False)
        with pytest.raises(EvalError, match=r"franca\[eval\]"):
            draw(make_context("none"), opened(make_source(3)), PicturesConfig())

    def test_numbers_of_no_image_are_refused(self, make_context, make_source) -> None:
        with pytest.raises(EvalError, match=r"numbers=\[5\]: the images of made val are 0 to 2"):
            draw(make_context("none"), opened(make_source(3)), PicturesConfig(numbers=[5]))
        with pytest.raises(EvalError, match=r"none of the images \[1\] of made val can be read"):
            draw(make_context("broken"), opened(make_source(3, broken=(1,))), PicturesConfig(numbers=[1]))

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"kinds": ["pac"]}, "choose from pca"),
            ({"kinds": []}, "choose from pca"),
            ({"layout": "above"}, "choose side or overlay"),
            ({"opacity": 1.5}, "opacity=1.5"),
            ({"threshold": -0.1}, "threshold=-0.1"),
            ({"columns": 0}, "columns=0"),
        ],
    )
    def test_settings_that_make_no_sense_are_refused(self, settings, message) -> None:
        with pytest.raises(ValueError, match=message):
            PicturesConfig(**settings)


@pytest.mark.parametrize(
    ("model", "shown"),
    [
        ("/data/runs/mine/teacher.pth", "mine/teacher.pth"),
        ("untrained:/data/runs/mine/teacher.pth", "untrained:mine/teacher.pth"),
        ("timm:vit_base_patch14_dinov2.lvd142m", "timm:vit_base_patch14_dinov2.lvd142m"),
        ("runs/mine", "runs/mine"),
    ],
)
def test_models_have_short_names_in_figures(model, shown) -> None:
    assert short_name(model) == shown
    assert "".join(sheets.wrapped(shown)) == shown


def test_long_names_break_at_slashes_first() -> None:
    assert sheets.wrapped("final/teacher.pth") == ["final/", "teacher.pth"]
