"""Images to patch tokens.

Legend: B images, C channels, (h, w) patch grid, N = h * w patches in reading order, D width.
"""

from torch import Tensor, nn


class PatchEmbed(nn.Module):
    """(B, C, H, W) -> (B, N, D): one linear map per square patch.

    Raises:
        ValueError: for another number of channels, or a height or width that the patch does not divide.
    """

    def __init__(self, patch_size: int, in_chans: int, width: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.in_chans = in_chans
        self.proj = nn.Conv2d(in_chans, width, kernel_size=patch_size, stride=patch_size)

    def grid(self, images: Tensor) -> tuple[int, int]:
        """(h, w), rows and columns of patches, of images (B, C, H, W)."""
        if images.ndim != 4 or images.shape[1] != self.in_chans:
            raise ValueError(
                f"images of shape {tuple(images.shape)}; this model reads (B, {self.in_chans}, H, W): "
                f"in_chans={self.in_chans} was set when it was built"
            )
        height, width = images.shape[-2:]
        if height % self.patch_size or width % self.patch_size or not height or not width:
            raise ValueError(
                f"image of height {height} and width {width} does not divide into patches of {self.patch_size} pixels; "
                f"resize or crop it, nearest valid height: {self._nearest(height)}, width: {self._nearest(width)}"
            )
        return height // self.patch_size, width // self.patch_size

    def forward(self, images: Tensor) -> Tensor:
        self.grid(images)
        return self.proj(images).flatten(2).transpose(1, 2)

    def _nearest(self, size: int) -> str:
        """The multiples of the patch on both sides of `size`, in words."""
        below = size // self.patch_size * self.patch_size
        if below == size and size > 0:
            return str(size)
        above = below + self.patch_size
        return f"{below} or {above}" if below else str(above)
