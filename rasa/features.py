"""The frozen backbone at work: crops in, patch features out."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from franca.devices import compute_in
from franca.eval.features import normalise
from rasa.backbones import Backbone
from rasa.crops import Crops
from rasa.errors import RasaError


@dataclass(frozen=True)
class Engine:
    """The backbone on its device."""

    backbone: Backbone
    device: torch.device
    precision: torch.dtype | None  # of autocast; None: as the parameters are

    def check(self, channels: int, size: int) -> None:
        """Show the network one blank image. Raises RasaError when it takes none of that size, or gives no grid."""
        self.features(torch.zeros(1, channels, size, size, dtype=torch.uint8))

    @torch.inference_mode()
    def features(self, pixels: Tensor) -> Tensor:
        """uint8 (B, C, S, S) -> patch features (B, h, w, D), fp32 on the device."""
        images = normalise(pixels.to(self.device), self.backbone.mean, self.backbone.std)
        with compute_in(self.precision, self.device):
            return self.backbone(images)

    def batches(self, crops: Crops, number_of_pass: int = 0) -> Iterator[Tensor]:
        """Patch features of every crop of a pass, (B, h, w, D). Raises RasaError as `named_batches`."""
        return (features for features, _ in self.named_batches(crops, number_of_pass))

    def named_batches(self, crops: Crops, number_of_pass: int = 0) -> Iterator[tuple[Tensor, list[str]]]:
        """The same, with the name of each crop's image.

        Raises:
            RasaError: features that are not finite, with the name of the image; tokens that form no grid.
        """
        for batch in crops.batches(number_of_pass):
            features = self.features(batch.pixels)
            finite = features.isfinite().flatten(1).all(dim=1)
            if not finite.all():
                first = batch.names[int(finite.logical_not().nonzero()[0])]
                raise RasaError(
                    f"{self.backbone.name} gives features that are not finite (NaN or infinite) for {first}: check the "
                    "weights, or try precision=fp32"
                )
            yield features, batch.names
