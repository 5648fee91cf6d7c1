"""Before and after: position that was planted is measured, gone afterwards, and the page says what the numbers say."""

import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from franca.eval.protocols.position import position_error, score_positions
from franca.eval.protocols.position_moments import fit_ridge
from rasa import RasaError, fit_rasa, rasa_matrix
from rasa.backbones import Backbone
from rasa.crops import Crops, CropsConfig
from rasa.evidence import Evidence, Grids, gather, measure
from rasa.features import Engine
from rasa.report import headline


def grids(features: Tensor) -> Grids:
    """Every crop of an image of its own."""
    return Grids(features, [f"{number}.png" for number in range(len(features))])


@pytest.fixture(scope="module")
def evidence(planted: Callable[..., Any]) -> Evidence:
    head = fit_rasa(planted(strength=6.0).features, rounds=4, saturation=0.005).head
    probe, test = (grids(planted(strength=6.0, seed=seed).features) for seed in (1, 2))
    return measure(probe, test, head, 16, seed=0)


def test_position_is_there_before_and_gone_after(evidence: Evidence) -> None:
    for before, after in (
        (evidence.before.linear, evidence.after.linear),
        (evidence.before.sigmoid, evidence.after.sigmoid),
    ):
        assert before.r2 > 0.9
        assert abs(after.r2) < 0.02
    assert evidence.before.entropy.mean < 0.95 < evidence.after.entropy.mean
    assert (evidence.fitted_on, evidence.scored_on, evidence.clusters) == (120, 120, 16)


def test_the_share_that_went_is_that_of_the_planted_plane(evidence: Evidence, planted: Callable[..., Any]) -> None:
    held_out = planted(strength=6.0, seed=2)
    rows = held_out.features.flatten(0, 2)
    share = (rows @ held_out.position.T).var(dim=0).sum() / rows.var(dim=0).sum()
    assert evidence.variance_removed == pytest.approx(share.item(), abs=0.02)


def test_predictors_are_those_of_the_evaluation(evidence: Evidence, planted: Callable[..., Any]) -> None:
    probe, test = (planted(strength=6.0, seed=seed).features for seed in (1, 2))
    fresh = fit_ridge(*grids(probe).halves())
    assert evidence.before.linear.mse == pytest.approx(score_positions(fresh, test).mse)
    assert evidence.before.sigmoid.mse == pytest.approx(position_error(probe, test, "sigmoid").mse)
    numbers = evidence.numbers()
    assert json.loads(json.dumps(numbers)) == numbers
    assert numbers["before"]["position_rmse"] == evidence.before.linear.rmse


def test_the_number_of_clusters_follows_the_patches(planted: Callable[..., Any]) -> None:
    parts = [grids(planted(images=20, seed=seed).features) for seed in (1, 2)]
    head = fit_rasa(planted().features, rounds=1).head
    assert measure(*parts, head, 0, seed=0).clusters == 20 * 36 // 50


def test_too_few_crops_say_what_to_do(planted: Callable[..., Any]) -> None:
    head = fit_rasa(planted().features, rounds=1).head
    few, some = (grids(planted(images=images).features) for images in (1, 4))
    for parts in ((few, some), (some, few)):
        with pytest.raises(RasaError, match=r"no evidence: .*higher data\.views, or evidence\.crops=0"):
            measure(*parts, head, 0, seed=0)


def test_whole_grids_are_gathered_up_to_a_number(drawn_images: type[Any]) -> None:
    crops = Crops(drawn_images(10), range(10), CropsConfig(size=28, batch_size=4, workers=0), seed=0)
    engine = Engine(Backbone(lambda images: torch.nn.functional.avg_pool2d(images, 7)), torch.device("cpu"), None)
    few, all_of_them = gather(engine, crops, 6), gather(engine, crops, 99)
    assert few.features.shape == (6, 4, 4, 3)
    assert all_of_them.features.shape == (10, 4, 4, 3)
    assert torch.equal(few.features, all_of_them.features[:6])
    assert few.names == all_of_them.names[:6]
    assert set(all_of_them.names) == {f"{number}.png" for number in range(10)}


def test_halves_share_no_image() -> None:
    names = [f"{number % 5}.png" for number in range(20)]
    features = torch.tensor([float(name[0]) for name in names]).view(20, 1, 1, 1)
    first, second = Grids(features, names).halves()
    assert set(first.unique().tolist()) == {0.0, 2.0, 4.0}
    assert set(second.unique().tolist()) == {1.0, 3.0}
    assert len(first) + len(second) == 20
    one, other = Grids(features, ["only.png"] * 20).halves()
    assert len(one) == len(other) == 10


def test_few_images_are_not_learned_by_heart(planted: Callable[..., Any]) -> None:
    """Least squares does far worse than chance on other images then."""
    probe, test = (planted(images=count, strength=0.5, seed=seed).features for count, seed in ((4, 1), (80, 2)))
    torch.manual_seed(0)
    probe, test = (torch.cat([part, torch.randn(*part.shape[:3], 100)], dim=-1) for part in (probe, test))
    assert position_error(probe, test).r2 < -0.2
    assert score_positions(fit_ridge(*grids(probe).halves()), test).r2 > -0.05


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (0.9, 0.01, "Position is gone: a fresh linear predictor explained 90 % of it before, nothing now."),
        (0.9, 0.4, "Less position is left: a fresh linear predictor explained 90 % of it before, 40 % now."),
        (-0.01, -0.02, "There was hardly any position to remove: a linear predictor explained 0 % of it."),
    ],
)
def test_the_headline_follows_from_the_numbers(before: float, after: float, said: str) -> None:
    sides = {
        name: SimpleNamespace(linear=SimpleNamespace(r2=r2)) for name, r2 in (("before", before), ("after", after))
    }
    result: Any = SimpleNamespace(
        evidence=SimpleNamespace(**sides, variance_removed=0.123, scored_on=50),
        fit=SimpleNamespace(
            rounds=[SimpleNamespace(predictable=max(before, 0.0))] * 3, head=SimpleNamespace(input_dim=64)
        ),
    )
    assert headline(result) == f"{said} 6 of 64 dimensions went, with 12 % of the features' variance."


def test_the_map_that_is_measured_is_the_heads(evidence: Evidence, planted: Callable[..., Any]) -> None:
    head = fit_rasa(planted(strength=6.0).features, rounds=4, saturation=0.005).head
    probe, test = (planted(strength=6.0, seed=seed).features @ rasa_matrix(head).float() for seed in (1, 2))
    fresh = score_positions(fit_ridge(*grids(probe).halves()), test)
    assert evidence.after.linear.mse == pytest.approx(fresh.mse, rel=1e-4)
