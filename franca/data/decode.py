"""One file -> one uint8 tensor (C, H, W), or an error that says why not.

Rules: the first frame of animations and multi-page files; upright by the EXIF orientation; transparency laid on white;
16-bit values scaled to 8 bits; 32-bit and floating-point values stretched from their least to their largest.
"""

import io
import warnings
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

from franca.data.errors import UnreadableImage

EXTENSIONS = (
    *(".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".avif", ".npy"),
)
# An image of more pixels is skipped: decoded it would take gigabytes, and a few bytes can claim any size
# ("decompression bomb"). It is the size from which Pillow itself refuses, and applies to all formats.
MAX_PIXELS = 178_956_970
# A longer image is shrunk when it is read (a JPEG while it is decoded, at a fraction of the cost), by a whole
# factor and never below this on its short side. Crops take far fewer pixels than that.
SHORT_SIDE_KEPT = 1024


def read_image(path: str | Path, channels: int = 3) -> Tensor:
    """Reads one image as a (channels, H, W) uint8 tensor.

    channels: 3 converts to RGB, 1 to grey; any other number must be what the file holds (4: RGBA or CMYK as stored;
    arrays in .npy files have shape (H, W) or (H, W, channels)).
    Raises UnreadableImage, whatever is wrong with the file.
    """
    try:
        # Opened here: by a name Pillow maps an uncompressed TIFF into memory, and then turns its sides but not its
        # pixels upright.
        with open(path, "rb") as file:
            return _decode(file, str(path), channels)
    except Exception as error:  # decoders raise nearly anything on broken files
        raise UnreadableImage(str(path), f"{type(error).__name__}: {error}") from error


def decode_image(content: bytes, name: str, channels: int = 3) -> Tensor:
    """As read_image, from the bytes of a file that was called ``name`` (member of an archive)."""
    try:
        return _decode(io.BytesIO(content), name, channels)
    except Exception as error:
        raise UnreadableImage(name, f"{type(error).__name__}: {error}") from error


def _decode(file: BinaryIO, name: str, channels: int) -> Tensor:
    # Decoders warn about files they can still read.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pixels = _read_array(file) if name.lower().endswith(".npy") else _read_picture(file, channels)
    return _to_tensor(pixels, channels)


def _read_picture(file: BinaryIO, channels: int) -> np.ndarray:
    """Any format Pillow knows -> (H, W) or (H, W, C), uint8."""
    with Image.open(file) as image:
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise ValueError(f"{width} x {height} pixels are more than {MAX_PIXELS}; shrink the file to use it")
        factor = min(width, height) // SHORT_SIDE_KEPT
        if factor > 1:
            image.draft(None, (width // factor, height // factor))
        elif channels == 3 and _is_plain_jpeg(image):
            pixels = _read_jpeg(file)
            if pixels is not None:
                return pixels
        image.load()
        picture = _in_8_bits(_upright(image))
        factor = min(picture.size) // SHORT_SIDE_KEPT
        return _in_channels(picture.reduce(factor) if factor > 1 else picture, channels)


def _is_plain_jpeg(image: Image.Image) -> bool:
    """Whether it is stored as it is seen, in grey or three colours."""
    return image.format == "JPEG" and image.mode in ("RGB", "L") and _upright_already(image)


def _upright_already(image: Image.Image) -> bool:
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1) == 1
    except Exception:  # a damaged EXIF block: left to `_upright`
        return False


def _read_jpeg(file: BinaryIO) -> np.ndarray | None:
    """(H, W, 3) uint8 as Pillow gives it (both use libjpeg-turbo), a fifth sooner: without Pillow's copies.

    None when it can't be read so: Pillow is to say what is wrong.
    """
    position = file.tell()
    file.seek(0)
    try:
        content = torch.frombuffer(bytearray(file.read()), dtype=torch.uint8)
        pixels: np.ndarray = decode_jpeg(content, mode=ImageReadMode.RGB).permute(1, 2, 0).numpy()
    except RuntimeError:
        file.seek(position)
        return None
    return pixels


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # a damaged EXIF block says nothing about the pixels
        return image


def _in_8_bits(image: Image.Image) -> Image.Image:
    """Palettes, bits, wide integers and floats become ordinary 8-bit modes."""
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_to_8_bits(np.asarray(image), image.mode))
    if image.mode in ("P", "PA"):
        return image.convert("RGBA" if image.has_transparency_data else "RGB")
    return image.convert("L") if image.mode == "1" else image


def _in_channels(image: Image.Image, channels: int) -> np.ndarray:
    if channels not in (1, 3):
        return np.asarray(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image.convert("RGB" if channels == 3 else "L"))


def _read_array(file: BinaryIO) -> np.ndarray:
    """A saved array of shape (H, W) or (H, W, C) -> the same shape, uint8."""
    array = np.load(file, allow_pickle=False)
    if array.ndim not in (2, 3):
        raise ValueError(f"shape {array.shape} is neither (height, width) nor (height, width, channels)")
    return _to_8_bits(array, str(array.dtype))


def _to_8_bits(values: np.ndarray, kind: str) -> np.ndarray:
    if values.dtype == np.uint8:
        return values
    if values.dtype == bool:
        return values.astype(np.uint8) * 255
    low, high = float(values.min()), float(values.max())
    if not np.isfinite([low, high]).all():
        raise ValueError(f"{kind} values are not all finite")
    is_16_bit = values.dtype.kind == "u" and values.dtype.itemsize == 2
    if is_16_bit or (kind == "I" and low >= 0 and high <= 65535):  # Pillow's "I" may hold 16 bits
        low, high = 0.0, 65535.0
    scaled = (values.astype(np.float32) - low) * (255.0 / max(high - low, 1e-12))
    return np.rint(scaled).astype(np.uint8)


def _to_tensor(pixels: np.ndarray, channels: int) -> Tensor:
    """(H, W) or (H, W, C) -> (channels, H, W), the channels of a pixel together in memory."""
    pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels
    if channels == 3 and pixels.shape[2] == 1:
        pixels = np.repeat(pixels, 3, axis=2)
    if pixels.shape[2] != channels or pixels.size == 0:
        raise ValueError(f"height, width, channels are {pixels.shape}, but data.channels={channels}")
    own = pixels.flags.writeable and pixels.flags.c_contiguous  # Pillow's memory is read-only
    return torch.from_numpy(pixels if own else pixels.copy()).permute(2, 0, 1)
