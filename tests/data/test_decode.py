"""Every kind of file: converted right, or refused with its name and a reason."""

import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from franca.data import decode
from franca.data.decode import MAX_PIXELS, read_image
from franca.data.errors import UnreadableImage


def _gradient(height: int = 24, width: int = 32) -> np.ndarray:
    """Smooth, asymmetric in both directions, every channel its own, (H, W, 3) uint8."""
    rows, columns = np.mgrid[0:height, 0:width]
    channels = (255 * columns / (width - 1), 255 * rows / (height - 1), 128 + 60 * columns / (width - 1))
    return np.stack(channels, axis=2).astype(np.uint8)


def _close(read: Tensor, expected: np.ndarray, tolerance: float) -> None:
    assert read.dtype == torch.uint8
    assert tuple(read.shape) == (expected.shape[2], *expected.shape[:2])
    difference = np.abs(read.permute(1, 2, 0).numpy().astype(float) - expected)
    assert difference.mean() <= tolerance
    assert difference.max() <= 8 * tolerance


def _save(image: Image.Image, path: Path, **options) -> Path:
    image.save(path, **options)
    return path


@pytest.mark.parametrize(
    ("extension", "tolerance"),
    [("png", 0), ("bmp", 0), ("tif", 0), ("ppm", 0), ("JPG", 2), ("jpeg", 2), ("webp", 6), ("gif", 8)],
)
def test_formats(tmp_path: Path, extension: str, tolerance: float) -> None:
    path = tmp_path / f"image.{extension}"
    Image.fromarray(_gradient()).save(path)
    _close(read_image(path), _gradient(), tolerance)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "I;16", "I", "F"])
def test_modes_become_rgb_or_grey(tmp_path: Path, mode: str) -> None:
    """A grey ramp saved in any pixel format comes back as the same ramp."""
    ramp = np.tile(np.linspace(0, 255, 64).astype(np.uint8), (48, 1))
    image = Image.fromarray(ramp)
    if mode == "I;16":
        image = Image.fromarray(ramp.astype(np.uint16) * 257)
    elif mode in ("I", "F"):
        image = Image.fromarray(ramp.astype({"I": np.int32, "F": np.float32}[mode]) * (257 if mode == "I" else 1))
    else:
        image = (image if mode == "P" else image.convert("RGB")).convert(mode)
    path = _save(image, tmp_path / "image.tif")
    expected = np.repeat(ramp[:, :, None], 3, axis=2)
    read = read_image(path)
    if mode == "1":  # dithered: right on average
        assert set(read.unique().tolist()) == {0, 255}
        assert abs(read.float().mean() - expected.mean()) < 3
    else:
        _close(read, expected, 2 if mode == "YCbCr" else 1)
    assert read_image(path, channels=1).shape == (1, 48, 64)


def test_cmyk_jpeg_keeps_its_colours(tmp_path: Path) -> None:
    """Such files usually hold inverted values (Adobe)."""
    path = _save(Image.fromarray(_gradient()).convert("CMYK"), tmp_path / "image.jpg", quality=95)
    _close(read_image(path), _gradient(), 2)


@pytest.mark.parametrize(
    "options",
    [{}, {"quality": 30}, {"subsampling": 0}, {"subsampling": 1}, {"progressive": True}, {"restart_marker_rows": 1}],
    ids=str,
)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_jpeg_is_what_pillow_reads(tmp_path: Path, mode: str, options: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoded without Pillow, whose way stays for what is no plain JPEG."""
    picture = Image.fromarray(_gradient(67, 93)).convert(mode)
    path = _save(picture, tmp_path / "image.jpg", **options)
    expected = np.asarray(Image.open(path).convert("RGB")).astype(int)
    read = read_image(path)
    assert np.abs(read.permute(1, 2, 0).numpy() - expected).max() <= 1  # releases of the library may round otherwise
    monkeypatch.setattr(decode, "_read_jpeg", lambda _: None)
    assert np.array_equal(read_image(path).permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize("kept", [0.3, 0.9, 0.999])
def test_a_truncated_jpeg_is_refused(tmp_path: Path, kept: float) -> None:
    path = _save(Image.fromarray(_gradient(200, 200)), tmp_path / "image.jpg")
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(UnreadableImage, match=r"image\.jpg"):
        read_image(path)


@pytest.mark.parametrize("extension", ["png", "tif", "pgm"])
def test_16_bits_are_scaled_not_clipped(tmp_path: Path, extension: str) -> None:
    values = np.linspace(0, 65535, 40 * 50).reshape(40, 50).astype(np.uint16)
    read = read_image(_save(Image.fromarray(values), tmp_path / f"image.{extension}"), channels=1)
    _close(read, values[:, :, None] / 257, 0.5)


def test_16_bit_values_of_a_dark_image_keep_their_scale(tmp_path: Path) -> None:
    path = _save(Image.fromarray(np.full((5, 5), 257 * 3, np.uint16)), tmp_path / "dark.png")
    assert read_image(path).unique().tolist() == [3]


def _png(pixels: np.ndarray, colour_type: int) -> bytes:
    """A PNG with 16 bits per channel, (H, W, C) uint16: what Pillow reads but cannot write."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    height, width = pixels.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_16_bit_colour(tmp_path: Path) -> None:
    colours = _gradient().astype(np.uint16) * 257
    (tmp_path / "rgb.png").write_bytes(_png(colours, colour_type=2))
    _close(read_image(tmp_path / "rgb.png"), _gradient(), 1)
    opaque = np.concatenate([colours, np.full((*colours.shape[:2], 1), 65535, np.uint16)], axis=2)
    (tmp_path / "rgba.png").write_bytes(_png(opaque, colour_type=6))
    _close(read_image(tmp_path / "rgba.png"), _gradient(), 1)


def test_transparency_is_laid_on_white(tmp_path: Path) -> None:
    pixels = np.zeros((4, 6, 4), np.uint8)
    pixels[..., 0] = 200
    pixels[:, 2:4, 3] = 128
    pixels[:, 4:, 3] = 255
    expected = [[255, 255, 255], [227, 127, 127], [200, 0, 0]]
    rgba = Image.fromarray(pixels)
    files = [_save(rgba, tmp_path / "rgba.png"), _save(rgba, tmp_path / "rgba.webp", lossless=True)]
    for path in files:
        read = read_image(path)
        for column, colour in zip((0, 2, 4), expected, strict=True):
            assert (read[:, :, column].float() - torch.tensor(colour).view(3, 1)).abs().max() <= 2, path.name


def test_transparent_palette_entry_and_colour_key(tmp_path: Path) -> None:
    palette = Image.new("P", (8, 8), 0)
    palette.putpalette([10, 20, 30, 200, 100, 50])
    palette.putpixel((3, 3), 1)
    keyed = Image.new("RGB", (8, 8), (10, 20, 30))
    keyed.putpixel((3, 3), (200, 100, 50))
    for path in (
        _save(palette, tmp_path / "palette.png", transparency=0),
        _save(keyed, tmp_path / "keyed.png", transparency=(10, 20, 30)),
    ):
        read = read_image(path)
        assert read[:, 0, 0].tolist() == [255, 255, 255]
        assert read[:, 3, 3].tolist() == [200, 100, 50]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("extension", ["jpg", "png", "tif"])
def test_exif_orientation(tmp_path: Path, extension: str, orientation: int) -> None:
    """However a camera was held, the picture comes out upright."""
    upright = Image.fromarray(_gradient())
    back = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # the transposition that undoes each orientation's own
    stored = upright if orientation == 1 else upright.transpose(Image.Transpose(back[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = _save(stored, tmp_path / f"image.{extension}", exif=exif.tobytes())
    _close(read_image(path), _gradient(), 2)


@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
@pytest.mark.parametrize("mode", ["L", "RGBA", "CMYK", "I;16"])
def test_exif_orientation_of_every_kind_of_tiff(tmp_path: Path, mode: str, compression: str | None) -> None:
    ramp = _gradient()[:, :, 1]
    upright = Image.fromarray(ramp.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(ramp)
    upright = upright if mode in ("L", "I;16") else upright.convert("RGB").convert(mode)
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = upright.transpose(Image.Transpose.ROTATE_90)
    path = _save(stored, tmp_path / "image.tif", exif=exif.tobytes(), compression=compression)
    _close(read_image(path), np.repeat(ramp[:, :, None], 3, axis=2), 1)


def test_damaged_exif_is_no_damage(tmp_path: Path) -> None:
    path = _save(Image.fromarray(_gradient()), tmp_path / "image.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\x7fgarbage")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _close(read_image(path), _gradient(), 2)


@pytest.mark.parametrize("channels", [1, 3])
def test_one_pixel(tmp_path: Path, channels: int) -> None:
    path = _save(Image.new("RGB", (1, 1), (90, 90, 90)), tmp_path / "image.png")
    assert read_image(path, channels).flatten().tolist() == [90] * channels


def test_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    for path in (tmp_path / "moving.gif", tmp_path / "pages.tif"):
        frames[0].save(path, save_all=True, append_images=frames[1:])
        assert read_image(path)[:, 4, 4].tolist() == [255, 0, 0]


def _jpeg() -> bytes:
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, "jpeg")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        pytest.param(b"", "cannot identify", id="zero bytes"),
        pytest.param(b"not an image\n" * 50, "cannot identify", id="text"),
        pytest.param(b"\0" * 5000, "cannot identify", id="zeros"),
        pytest.param(_jpeg()[:1500], "truncated", id="truncated"),
        pytest.param(_jpeg()[:20], "", id="header only"),
        pytest.param(_png(np.arange(100).reshape(10, 10, 1), 0)[:80], "", id="truncated png"),
    ],
)
def test_broken_files_are_refused_by_name(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "broken.jpg"
    path.write_bytes(content)
    with pytest.raises(UnreadableImage, match=r"broken\.jpg") as caught:
        read_image(path)
    assert caught.value.name == str(path)
    assert reason in caught.value.reason
    assert caught.value.reason


def test_missing_files_and_folders_are_refused_by_name(tmp_path: Path) -> None:
    for path in (tmp_path / "gone.jpg", tmp_path):
        with pytest.raises(UnreadableImage, match=path.name):
            read_image(path)


@pytest.mark.parametrize("extension", ["jpg", "png"])
def test_100_megapixels_shrink_to_what_crops_need(tmp_path: Path, extension: str) -> None:
    """10,000 x 10,000 pixels: read without a warning, small enough for cheap crops, and still the same picture."""
    image = Image.fromarray(_gradient(100, 100)).resize((10_000, 10_000), Image.Resampling.NEAREST)
    path = _save(image, tmp_path / f"huge.{extension}", **({"compress_level": 1} if extension == "png" else {}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read = read_image(path)
    side = read.shape[-1]
    assert decode.SHORT_SIDE_KEPT <= side < 2 * decode.SHORT_SIDE_KEPT
    small = Image.fromarray(read.permute(1, 2, 0).numpy()).resize((100, 100), Image.Resampling.BOX)
    assert np.abs(np.asarray(small).astype(int) - _gradient(100, 100)).mean() < 3


@pytest.mark.parametrize("mode", ["P", "RGBA", "I;16", "1"])
def test_every_mode_shrinks(tmp_path: Path, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "SHORT_SIDE_KEPT", 10)
    path = _save(Image.new(mode, (60, 43), 1), tmp_path / "image.png")
    assert read_image(path).shape == (3, 11, 15)  # by 4


def test_more_pixels_than_the_limit_are_refused(tmp_path: Path) -> None:
    """The header alone decides: nothing is decoded."""
    side = int(MAX_PIXELS**0.5) + 2
    small = _png(np.zeros((1, 1, 1)), 0)
    header = struct.pack(">II", side, side) + small[24:29]
    body = b"IHDR" + header
    huge = small[:12] + body + struct.pack(">I", zlib.crc32(body)) + small[33:]
    path = tmp_path / "bomb.png"
    path.write_bytes(huge)
    with pytest.raises(UnreadableImage, match=r"bomb\.png.*pixels"):
        read_image(path)


def test_the_limit_does_not_depend_on_pillows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "MAX_PIXELS", 24 * 32 - 1)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    path = _save(Image.fromarray(_gradient()), tmp_path / "image.png")
    with pytest.raises(UnreadableImage, match="32 x 24 pixels are more than 767"):
        read_image(path)


class TestChannels:
    def test_grey(self, tmp_path: Path) -> None:
        path = _save(Image.fromarray(_gradient()), tmp_path / "image.png")
        grey = np.asarray(Image.fromarray(_gradient()).convert("L"))[:, :, None]
        _close(read_image(path, channels=1), grey, 0)

    def test_four_as_stored(self, tmp_path: Path) -> None:
        pixels = np.concatenate([_gradient(), _gradient()[..., :1]], axis=2)
        for mode in ("RGBA", "CMYK"):
            path = _save(Image.frombytes(mode, (32, 24), pixels.tobytes()), tmp_path / f"{mode}.tif")
            _close(read_image(path, channels=4), pixels, 0)

    def test_a_mismatch_names_both_numbers(self, tmp_path: Path) -> None:
        path = _save(Image.fromarray(_gradient()), tmp_path / "image.png")
        with pytest.raises(UnreadableImage, match=r"\(24, 32, 3\), but data.channels=4"):
            read_image(path, channels=4)

    @pytest.mark.parametrize("channels", [2, 3, 7])
    def test_arrays(self, tmp_path: Path, channels: int) -> None:
        values = np.random.default_rng(0).integers(0, 256, (5, 6, channels), dtype=np.uint8)
        np.save(tmp_path / "a.npy", values)
        _close(read_image(tmp_path / "a.npy", channels), values, 0)

    @pytest.mark.parametrize("channels", [1, 3])
    def test_flat_arrays(self, tmp_path: Path, channels: int) -> None:
        values = np.arange(30, dtype=np.uint8).reshape(5, 6)
        np.save(tmp_path / "a.npy", values)
        _close(read_image(tmp_path / "a.npy", channels), np.repeat(values[:, :, None], channels, axis=2), 0)

    def test_other_types_of_arrays(self, tmp_path: Path) -> None:
        ramp = np.linspace(0, 1, 60).reshape(10, 6, 1)
        for values in (ramp.astype(np.float32), (ramp * 65535).astype(np.uint16), (ramp * 1e6 - 50).astype(np.int64)):
            np.save(tmp_path / "a.npy", values)
            _close(read_image(tmp_path / "a.npy", 1), 255 * ramp, 0.6)
        np.save(tmp_path / "a.npy", ramp > 0.5)
        _close(read_image(tmp_path / "a.npy", 1), 255 * (ramp > 0.5), 0)

    @pytest.mark.parametrize(
        "array",
        [np.zeros(4), np.zeros((2, 2, 2, 2)), np.full((4, 4), np.nan), np.zeros((0, 4)), np.array([[{}]])],
        ids=["1d", "4d", "nan", "empty", "objects"],
    )
    def test_arrays_that_are_no_images(self, tmp_path: Path, array: np.ndarray) -> None:
        np.save(tmp_path / "a.npy", array)
        with pytest.raises(UnreadableImage, match=r"a\.npy"):
            read_image(tmp_path / "a.npy", 1)
