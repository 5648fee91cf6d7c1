"""Everything photometric about crops, in batches on the device that trains, each crop by its own row of changes.

Legend: N crops, C channels, (S, S) pixels; values between 0 and 255 until they are normalised. Nothing is rounded on
the way, where a pipeline of 8-bit images rounds after every change.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from franca.data import changes as row

BLUR_REACH = 4  # pixels each side: 9 taps
SOLARIZE_THRESHOLD = 128
SHARPEST = 1e-2  # pixels: the neighbours' share is 0 in any type
GREYEST = 1e-6  # of 255: below it a chroma is noise, and any hue will do
CACHED = 2**17  # numbers that are changed together on the CPU


def finish(crops: Tensor, changes: Tensor, norm: Tensor) -> Tensor:
    """(N, C, S, S) uint8 -> the crops as the network reads them, in the type of ``norm``.

    changes: (N, changes.COLUMNS). norm: (2, C), mean and standard deviation of values between 0 and 255. All on one
    device. Shapes and operations are always the same, and nothing waits for the device; but on the CPU, where that
    gains nothing, only what the rows say is done, and to so few crops at a time that they stay in its cache.
    """
    blurs = _blurs(crops, norm)
    if crops.device.type != "cpu":
        return _finish(crops, changes, norm, blurs, [True] * row.COLUMNS)
    finished = torch.empty(crops.shape, dtype=norm.dtype)
    for places in _alike(changes, max(1, CACHED // crops[0].numel())):
        used = changes[places].any(0).tolist()
        finished[places] = _finish(crops[places], changes[places], norm, blurs, used)
    return finished


def _alike(changes: Tensor, most: int) -> Iterator[Tensor]:
    """Places of crops whose jitter takes the same steps, ``most`` at a time."""
    groups: dict[tuple[bool, ...], list[int]] = {}
    for place, steps in enumerate(changes[:, row.JITTER].bool().tolist()):
        groups.setdefault(tuple(steps), []).append(place)
    for places in groups.values():
        yield from torch.tensor(places).split(most)


def _finish(crops: Tensor, changes: Tensor, norm: Tensor, blurs: Tensor, used: list[bool]) -> Tensor:
    """used: whether any row has something in a column; [True] * COLUMNS gives the same for any rows."""
    columns = changes.to(norm.dtype).view(*changes.shape, 1, 1, 1).unbind(1)  # (N, 1, 1, 1) each
    if used[row.FLIP]:
        crops = torch.where(columns[row.FLIP] != 0, crops.flip(-1), crops)
    pixels = crops.to(norm.dtype, memory_format=torch.contiguous_format)
    if crops.shape[1] == 3:
        for slot in range(row.SLOTS):
            if slot == row.SLOTS // 2 and used[row.TURN]:
                pixels = turn_hue(pixels, columns[row.TURN])
            _mix(pixels, columns[3 * slot : 3 * slot + 3], used[3 * slot : 3 * slot + 3])
        if used[row.GREYSCALE]:
            pixels = torch.lerp(pixels, luma(pixels), columns[row.GREYSCALE])
    if used[row.SIGMA]:
        pixels = _blur(pixels, changes[:, row.SIGMA].to(norm.dtype), blurs)
    if used[row.SOLARIZE]:
        inverted = (columns[row.SOLARIZE] != 0) & (pixels >= SOLARIZE_THRESHOLD)
        pixels = torch.where(inverted, 255 - pixels, pixels)
    mean, std = norm.view(2, 1, -1, 1, 1)
    return pixels.sub_(mean).div_(std)


def _mix(pixels: Tensor, shares: tuple[Tensor, ...], used: list[bool]) -> None:
    """Mixes black, mean grey and own grey into (N, 3, S, S), in place; shares: of each, (N, 1, 1, 1)."""
    if not any(used):
        return
    black, mean, grey = shares
    others = [mean * luma(pixels.mean((-2, -1), keepdim=True))] if used[row.MEAN] else []
    others += [grey * luma(pixels)] if used[row.GREY] else []
    pixels.mul_(1 - black - mean - grey)
    if others:
        pixels.add_(others[0] if len(others) == 1 else others[0] + others[1])
    pixels.clamp_(0, 255)


def luma(pixels: Tensor) -> Tensor:
    """Grey (N, 1, S, S) of RGB pixels (N, 3, S, S), by the weights of ITU-R 601, as Pillow and torchvision do."""
    red, green, blue = pixels.split(1, dim=1)
    return (0.2989 * red).add_(green, alpha=0.587).add_(blue, alpha=0.114)


def turn_hue(pixels: Tensor, turn: Tensor | float) -> Tensor:
    """Turns the hue of (N, 3, S, S) by ``turn`` (1 is the whole circle), leaving HSV's saturation and value.

    With the value V, the chroma C and the hue H in sixths of the circle, each channel is V - C * clamp(2 - d, 0, 1),
    d the distance on the circle between H and what lies opposite of the channel's own hue: 3 for red, 5, 1.
    """
    red, green, blue = pixels.split(1, dim=1)
    value = torch.maximum(torch.maximum(red, green), blue)
    chroma = value - torch.minimum(torch.minimum(red, green), blue)
    # Chosen by numbers 0 and 1: on the CPU four times as quick as by truth values.
    hue = (red - green).add_(chroma, alpha=4)
    hue.lerp_((blue - red).add_(chroma, alpha=2), value.clone().eq_(green))
    hue.lerp_(green - blue, value.clone().eq_(red))
    hue.div_(chroma.clamp(min=GREYEST)).add_(6 * turn)
    hue.sub_((hue / 6).floor_(), alpha=6)
    own = torch.arange(0, 6, 2, device=pixels.device, dtype=pixels.dtype).view(3, 1, 1)
    distance = (hue - own).abs_().sub_(3).abs_()  # from the own hue, then from its opposite
    return distance.clamp_(1, 2).mul_(chroma).add_(value.sub_(chroma, alpha=2))


def _blurs(crops: Tensor, like: Tensor) -> Tensor:
    """(BLUR_REACH + 1, S * S): what pixels at each distance give to a line of S pixels, mirrored at its ends."""
    size = crops.shape[-1]
    line = torch.arange(size, device=like.device)
    this, other = line[:, None], line[None, :]
    reach = torch.arange(BLUR_REACH + 1, device=like.device).view(-1, 1, 1)
    direct = (this - other).abs() == reach
    before = (this + other == reach) & (other > 0)
    behind = (2 * (size - 1) - this - other == reach) & (other < size - 1)
    return (direct.to(like.dtype) + before + behind).flatten(1)


def _blur(pixels: Tensor, sigma: Tensor, blurs: Tensor) -> Tensor:
    """A Gaussian of 9 taps along both axes; sigma (N,), 0 changes nothing.

    As two products with a matrix of each crop's own: shifted sums are quicker only for one large crop on the CPU.
    """
    size = pixels.shape[-1]
    reach = torch.arange(BLUR_REACH + 1, device=pixels.device, dtype=pixels.dtype)
    taps = torch.exp(-0.5 * (reach / sigma.clamp(min=SHARPEST)[:, None]) ** 2)
    taps = taps / (2 * taps.sum(1, keepdim=True) - 1)
    along = (taps @ blurs).view(-1, 1, size, size)
    return along @ pixels @ along.mT
