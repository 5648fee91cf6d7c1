"""Random crops and colours of the memory: image and mask stay together, seeds decide all."""

import torch
from torch import Tensor

from franca.eval.datasets import OpenedSplit
from franca.eval.protocols.in_context_augmentation import augmented, jitter_colours


class Ramps:
    """Images whose red is the mask: 0, 10, 20 … by columns, of different sizes."""

    classes = [f"class {number}" for number in range(20)]
    labels = None

    def __len__(self) -> int:
        return 6

    def name(self, index: int) -> str:
        return f"ramp {index}"

    def mask(self, index: int) -> Tensor:
        return (torch.arange(60 + 7 * index) // 6).expand(50, -1).to(torch.uint8)

    def load(self, index: int) -> Tensor:
        return (self.mask(index) * 10).expand(3, -1, -1)


SPLIT = OpenedSplit("ramps", "train", Ramps(), "hash")


def test_the_mask_is_cropped_as_the_image_is(monkeypatch) -> None:
    monkeypatch.setattr("franca.eval.protocols.in_context_augmentation.jitter_colours", lambda image, random: image)
    source = augmented(SPLIT, 32, seed=3).source
    for index in range(len(source)):
        image, mask = source.load(index), source.mask(index)
        assert image.shape == (3, 32, 32)
        assert mask.shape == (32, 32)
        assert (image[0].int() - 10 * mask.int()).abs().max() <= 10, "as far as one blurred edge"


def test_seed_and_image_decide_the_crop() -> None:
    first, again, other = (augmented(SPLIT, 32, seed) for seed in (0, 0, 1))
    assert torch.equal(first.source.load(2), again.source.load(2))
    assert torch.equal(first.source.mask(2), again.source.mask(2))
    assert not torch.equal(first.source.load(2), other.source.load(2))
    assert len({SPLIT.hash, first.hash, other.hash}) == 3, "stored features of one are not taken for the other's"


def test_a_crop_takes_at_least_half_of_the_image() -> None:
    source = augmented(SPLIT, 64, seed=0).source
    for index in range(len(source)):
        seen = int(source.mask(index).max()) - int(source.mask(index).min()) + 1
        assert seen >= 0.5 * int(Ramps().mask(index).max())


def test_colours_change_a_little_and_by_chance() -> None:
    image = torch.randint(60, 200, (3, 20, 20), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    changed = [jitter_colours(image, torch.Generator().manual_seed(seed)) for seed in range(100)]
    same = sum(torch.equal(one, image) for one in changed)
    assert 1 <= same <= 16, "none of four changes of one half each: about six of a hundred"
    assert max((one.float() - image.float()).abs().mean().item() for one in changed) < 60
