"""Features are those of the model, row by row, whatever the batches."""

import pytest
import torch
from torchvision.transforms.v2 import functional as F

from franca.eval.features import extract_features, in_eval_mode, normalise, thumbnails
from franca.eval.images import EvalImages
from franca.eval.views import CentralSquare

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def test_rows_are_the_models_own_features(make_source, model) -> None:
    source = make_source(9, classes=3, broken=(2, 7))
    features = extract_features(model, EvalImages(source, CentralSquare(28)), batch_size=4, mean=MEAN, std=STD)
    assert features.index.tolist() == [0, 1, 3, 4, 5, 6, 8]
    assert features.labels.tolist() == [index % 3 for index in features.index.tolist()]
    for row, index in enumerate(features.index.tolist()):
        image = F.to_dtype(CentralSquare(28)(source.images[index]), torch.float32, scale=True)
        out = model.forward_features(F.normalize(image, MEAN, STD)[None])
        torch.testing.assert_close(features.cls[row], out["x_norm_clstoken"][0], atol=1e-5, rtol=0)
        torch.testing.assert_close(features.mean_patch[row], out["x_norm_patchtokens"][0].mean(0), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("batch_size", "workers"), [(1, 0), (7, 1), (64, 2)])
def test_batches_and_workers_change_nothing(make_source, model, batch_size, workers) -> None:
    source = make_source(40, broken=(5, 31))
    expected = extract_features(model, EvalImages(source, CentralSquare(28)))
    features = extract_features(model, EvalImages(source, CentralSquare(28), workers=workers), batch_size)
    torch.testing.assert_close(features.cls, expected.cls, atol=1e-5, rtol=0)
    torch.testing.assert_close(features.mean_patch, expected.mean_patch, atol=1e-5, rtol=0)
    assert torch.equal(features.index, expected.index)
    assert features.labels is None


def test_half_precision_stays_close(make_source, model) -> None:
    images = EvalImages(make_source(6), CentralSquare(28))
    exact, rough = (extract_features(model, images, autocast=kind) for kind in (None, torch.bfloat16))
    assert rough.cls.dtype == torch.float32
    assert not torch.equal(rough.cls, exact.cls)
    assert torch.nn.functional.cosine_similarity(rough.cls, exact.cls).min() > 0.99


def test_model_and_random_state_are_left_as_they_were(make_source, model) -> None:
    model.train()
    model.blocks[0].eval()
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    features = extract_features(model, EvalImages(make_source(5), CentralSquare(28)))
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert not features.cls.requires_grad


def test_mode_is_restored_after_an_error(model) -> None:
    model.train()

    def fail_in_eval_mode() -> None:
        with in_eval_mode(model):
            assert not model.blocks[1].training
            raise KeyError

    with pytest.raises(KeyError):
        fail_in_eval_mode()
    assert model.blocks[1].training


def test_normalise_is_torchvisions() -> None:
    pixels = torch.randint(256, (2, 3, 5, 4), dtype=torch.uint8)
    expected = F.normalize(F.to_dtype(pixels, torch.float32, scale=True), MEAN, STD)
    torch.testing.assert_close(normalise(pixels, MEAN, STD), expected)


def test_thumbnails_average_pixels(make_source) -> None:
    source = make_source(3)
    found = thumbnails(EvalImages(source, CentralSquare(16)), side=2)
    for row, image in zip(found, source.images, strict=True):
        blocks = CentralSquare(16)(image).float().view(3, 2, 8, 2, 8).mean(dim=(2, 4)) / 255
        torch.testing.assert_close(row, blocks.flatten())
