"""Patch features that RASA can be fitted on: square grids of more than one patch.

Legend: B images of C channels and S x S pixels, h x w patches, D width.
"""

from torch import Tensor

from franca.eval.errors import EvalError
from franca.eval.networks import Network, last_tokens
from rasa.errors import RasaError


def patch_features(model: Network, images: Tensor, name: str) -> Tensor:
    """Patch features (B, h, w, D) of square images (B, C, S, S) after a network's last block, fp32.

    Raises:
        RasaError: the network takes no images of this size, or gives no square grid of patches for them.
    """
    side = images.shape[-1]
    try:
        patches = last_tokens(model, images, name=name)[-1].patches
    except EvalError as error:
        raise RasaError(f"{error}. The size of the images is data.size={side}") from error
    if patches.shape[1] != patches.shape[2] or patches.shape[1] < 2:
        raise RasaError(
            f"{name}: patch tokens of images of {side} x {side} pixels form a grid of {tuple(patches.shape[1:3])}; "
            "RASA needs a square one of at least 2 x 2: change data.size"
        )
    return patches
