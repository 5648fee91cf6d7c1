import pytest
import torch
from torchvision.transforms.v2 import functional as F

from franca.data.transforms import eval_transform


def _smooth(height: int, width: int) -> torch.Tensor:
    noise = torch.rand(3, 6, 6, generator=torch.Generator().manual_seed(0))
    return (F.resize(noise, [height, width], antialias=True) * 255).to(torch.uint8)


@pytest.mark.parametrize(("height", "width"), [(256, 320), (400, 256), (1, 1), (1, 5000), (30, 20)])
@pytest.mark.parametrize("crop", ["center", "resize"])
def test_shape(crop: str, height: int, width: int) -> None:
    out = eval_transform(98, crop)(_smooth(height, width))
    assert out.shape == (3, 98, 98)
    assert out.dtype == torch.float32
    assert out.isfinite().all()


def test_center_is_the_usual_resize_and_crop() -> None:
    image = _smooth(300, 500)
    resized = F.resize(image, [256], interpolation=F.InterpolationMode.BICUBIC, antialias=True)
    usual = F.normalize(F.center_crop(resized, [224, 224]) / 255, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    assert (eval_transform(224)(image) - usual).abs().max() < 0.1  # about five of 256 grey levels, at the rim


def test_resize_shows_the_whole_image() -> None:
    image = torch.zeros(1, 50, 100, dtype=torch.uint8)
    image[..., 75:] = 255
    out = eval_transform(32, "resize", mean=[0.0], std=[1.0])(image)
    assert float(out.mean()) == pytest.approx(0.25, abs=0.01)
    assert float(eval_transform(32, "center", mean=[0.0], std=[1.0])(image).mean()) < 0.01


def test_bad_options_are_named() -> None:
    with pytest.raises(ValueError, match=r"crop='centre'.*center"):
        eval_transform(98, "centre")
    with pytest.raises(ValueError, match="size=0"):
        eval_transform(0)
