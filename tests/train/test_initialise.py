"""A run that begins with weights from a file: what is taken, what is refused, and what it says of itself."""

import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from franca.config import ConfigError
from franca.hub import cache, describe, info, load_model, save_teacher
from franca.hub.architecture import infer_config
from franca.hub.convert import convert
from franca.hub.names import chunk_blocks, flatten_blocks
from franca.models import BACKBONES, RASAHead, VisionTransformer
from franca.train.__main__ import main
from franca.train.build import build_pair
from franca.train.config import TrainConfig, load_config
from franca.train.initialise import fill, read_start
from franca.train.stopping import Interrupted
from franca.train.trainer import Trainer

SIDE = 56  # pixels, of the file's positions


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory, tiny_file: Path) -> Path:
    """A run of three steps, all of whose weights have moved."""
    folder = tmp_path_factory.mktemp("earlier") / "mine"
    options = [
        "steps=3",
        "optimizer.lr=0.05",
        "checkpoint.every=3",
        "model.num_heads=4",
        "data.crops.mean=[0.1,0.2,0.3]",
    ]
    assert main(["--config", str(tiny_file), f"output={folder}", *options]) == 0
    return folder


@pytest.fixture
def begun(tiny: Callable[..., TrainConfig], run_folder: Path) -> Callable[..., Trainer]:
    """`begun(…)`: the trainer of a tiny run before its first step, from the earlier run unless init_from= is given."""

    def begin(*overrides: str) -> Trainer:
        options = ("model.num_heads=4", f"init_from={run_folder}", *overrides)
        trainer = Trainer(tiny(*options))
        fill(trainer.pair, trainer.start)
        return trainer

    return begin


def features(model: nn.Module, side: int) -> dict[str, Tensor]:
    assert isinstance(model, VisionTransformer)
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = model.eval().forward_features(images)
    return {name: found[name] for name in ("x_norm_clstoken", "x_norm_patchtokens")}


def same(module: nn.Module, state: dict[str, Tensor]) -> bool:
    own = module.state_dict()
    return own.keys() == state.keys() and all(torch.equal(own[name], state[name]) for name in own)


@pytest.mark.parametrize("name", ["student", "teacher"])
@pytest.mark.parametrize("given", ["{run}", "{run}/teacher.pth", "{run}/checkpoints/step_0000003"])
def test_both_networks_have_the_files_features(
    given: str, name: str, begun: Callable[..., Trainer], run_folder: Path
) -> None:
    trainer = begun(f"init_from={given.format(run=run_folder)}")
    model = load_model(checkpoint=run_folder / "teacher.pth")
    backbone = getattr(trainer.pair, name).backbone
    assert same(backbone, model.state_dict())
    theirs, ours = features(model, SIDE), features(backbone, SIDE)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


@pytest.mark.parametrize("side", [28, 84])
def test_at_another_resolution_features_are_those_the_file_gives_there(
    side: int, begun: Callable[..., Trainer], run_folder: Path
) -> None:
    trainer = begun(f"data.crops.global_size={side}")
    backbone = trainer.pair.teacher.backbone
    assert backbone.pos_embed.shape[1] == 1 + (side // 14) ** 2
    theirs = features(load_model(checkpoint=run_folder), side)
    for key, found in features(backbone, side).items():
        assert torch.allclose(found, theirs[key], atol=1e-5)
    assert trainer.start.facts["stage"] == ("high-resolution" if side > SIDE else "continue")
    assert f"interpolated to {side // 14} x {side // 14}" in trainer.start.lines[0]


def test_model_img_size_says_the_grid_where_it_is_set(begun: Callable[..., Trainer], run_folder: Path) -> None:
    trainer = begun("data.crops.global_size=84", f"model.img_size={SIDE}")
    assert same(trainer.pair.teacher.backbone, load_model(checkpoint=run_folder).state_dict())


def test_new_heads_are_those_of_a_run_without_a_file(
    begun: Callable[..., Trainer], tiny: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    trainer, fresh = begun(), Trainer(tiny(f"output={tmp_path / 'fresh'}", "model.num_heads=4"))
    for head in ("dino_head", "ibot_head"):
        expected = fresh.pair.student.get_submodule(head).state_dict()
        assert same(trainer.pair.student.get_submodule(head), expected)
        assert same(trainer.pair.teacher.get_submodule(head), expected)
    assert "heads begin at random (the file's are left: init_heads=loaded takes them)" in trainer.start.lines[0]


def test_loaded_heads_are_the_files(begun: Callable[..., Trainer], run_folder: Path) -> None:
    trainer = begun("init_heads=loaded")
    state = torch.load(run_folder / "teacher.pth", weights_only=True)["teacher"]
    assert same(trainer.pair.teacher, state)
    assert same(trainer.pair.student, state)


def test_heads_in_the_authors_form_are_loaded_where_they_are_configured(
    begun: Callable[..., Trainer], tiny: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    """A checkpoint of the authors' training: chunked blocks, heads, no description; their heads don't normalise."""
    form = ("model.num_heads=2", "heads.normalize_bottleneck=false")
    with torch.random.fork_rng():
        theirs = Trainer(tiny(f"output={tmp_path / 'theirs'}", "seed=5", *form)).pair.teacher
    chunked = chunk_blocks(theirs.backbone.state_dict(), 1)
    state = {f"backbone.{name}": tensor for name, tensor in chunked.items()}
    state |= {name: tensor for name, tensor in theirs.state_dict().items() if not name.startswith("backbone.")}
    torch.save({"teacher": state}, tmp_path / "upstream.pth")
    options = (f"init_from={tmp_path / 'upstream.pth'}", "init_heads=loaded", "model.num_heads=2")
    with pytest.raises(ConfigError, match="dino_head: normalize_bottleneck False in the file, True here"):
        begun(*options)
    assert same(begun(*options, *form).pair.student, theirs.state_dict())


def test_heads_that_do_not_fit_are_a_short_table(begun: Callable[..., Trainer], parity_dir: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        begun("init_heads=loaded", "heads.nesting=[0.5,1.0]", "heads.hidden_dim=8", "heads.ibot.prototypes=32")
    rows = str(caught.value).splitlines()
    assert "init_heads=loaded, but the heads of" in rows[0]
    assert "  dino_head: level widths (nesting) [8, 16, 32] in the file, [16, 32] here" in rows
    assert "  ibot_head: prototypes [4, 8, 16] in the file, [16, 32] here" in rows
    assert "  dino_head: hidden_dim 16 in the file, 8 here" in rows
    assert rows[-1] == "set heads as in the file, or init_heads=new"
    assert len(rows) <= 11


def test_a_file_without_heads_has_none_to_load(begun: Callable[..., Trainer], run_folder: Path, tmp_path: Path) -> None:
    convert(run_folder / "teacher.pth", tmp_path / "backbone.safetensors", "safetensors")
    options = f"init_from={tmp_path / 'backbone.safetensors'}"
    with pytest.raises(ConfigError, match=r"dino_head: none in the file\n  ibot_head: none in the file"):
        begun(options, "init_heads=loaded")
    trainer = begun(options)
    assert same(trainer.pair.teacher.backbone, load_model(checkpoint=run_folder).state_dict())
    assert "heads begin at random (the file has none)" in trainer.start.lines[0]


def test_released_files_of_the_original(parity_dir: Path, tiny: Callable[..., TrainConfig]) -> None:
    """Attention heads can't be read from such a file; heads whose levels read the whole feature don't fit ours."""
    file = parity_dir / "tiny_checkpoint.pth"
    sizes = infer_config(recognise_names(file), str(file))
    options = [f"init_from={file}", *(f"model.{name}={sizes[name]}" for name in ("embed_dim", "depth"))]
    options += [f"model.patch_size={sizes['patch_size']}", "model.num_heads=2"]
    side = sizes["img_size"]
    options += [f"data.crops.global_size={side}", f"data.crops.local_size={side // sizes['patch_size'] // 2 * 14}"]
    trainer = Trainer(tiny(*options))
    fill(trainer.pair, trainer.start)
    recorded = np.load(parity_dir / "tiny_checkpoint_forward.npz", allow_pickle=False)
    with torch.no_grad():
        found = trainer.pair.teacher.backbone.forward_features(torch.from_numpy(recorded["x"]).float())
    expected = torch.from_numpy(recorded[next(name for name in recorded.files if name.endswith("x_norm_clstoken"))])
    assert torch.allclose(found["x_norm_clstoken"], expected, atol=2e-5)
    with pytest.raises(ConfigError, match="levels read the whole feature in the file, slices here"):
        Trainer(tiny(*options, "init_heads=loaded"))


def recognise_names(file: Path) -> dict[str, Tensor]:
    """The backbone's tensors under our names."""
    state = torch.load(file, weights_only=True)["teacher"]
    start = "backbone."
    return flatten_blocks({name.removeprefix(start): state[name] for name in state if name.startswith(start)})


@pytest.mark.parametrize(
    ("overrides", "settings"),
    [
        (["model.num_heads=2"], ["model.num_heads=4"]),
        (["model.depth=2", "model.embed_dim=64"], ["model.embed_dim=32", "model.depth=1"]),
        (["model.ffn=mlp", "model.num_register_tokens=2"], ["model.ffn=swiglu", "model.num_register_tokens=0"]),
        (["data.channels=1", "data.crops.mean=[0]", "data.crops.std=[1]"], ["data.channels=3"]),
    ],
)
def test_another_network_is_refused_with_what_to_set(
    overrides: list[str], settings: list[str], begun: Callable[..., Trainer], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        begun(*overrides)
    message = str(caught.value)
    assert "mine' holds custom (width 32, blocks 1, heads 4" in message
    assert "the configuration describes vit_tiny (width" in message
    suggested = message.partition("To begin with that file set ")[2].split()
    assert sorted(suggested) == sorted(settings)
    assert not (tmp_path / "run").exists(), "the folder is free for the corrected command"
    if "data.channels=3" not in suggested:  # needs mean and std of three channels, too
        begun(*overrides, *suggested)


def test_a_known_architecture_is_suggested_by_its_name(tiny: Callable[..., TrainConfig], tmp_path: Path) -> None:
    model = BACKBONES["vit_tiny"](img_size=SIDE)
    state = {f"backbone.{name}": tensor for name, tensor in model.state_dict().items()}
    save_teacher(tmp_path / "teacher.pth", state, {"arch": "vit_tiny", "backbone": model.config})
    config = load_config(None, [f"init_from={tmp_path / 'teacher.pth'}", f"data.crops.global_size={SIDE}"])
    with torch.device("meta"), pytest.raises(ConfigError, match=r"To begin with that file set model\.arch=vit_tiny$"):
        read_start(config, build_pair(config).student)


def test_a_feed_forward_width_of_its_own_can_not_be_described(tiny: Callable[..., TrainConfig], tmp_path: Path) -> None:
    model = VisionTransformer(img_size=SIDE, embed_dim=32, depth=1, num_heads=2, mlp_ratio=2.0)
    state = {f"backbone.{name}": tensor for name, tensor in model.state_dict().items()}
    save_teacher(tmp_path / "teacher.pth", state, {"arch": "custom", "backbone": model.config})
    with pytest.raises(ConfigError, match=r"holds a network that model can't describe: .*mlp\.w12"):
        Trainer(tiny(f"init_from={tmp_path / 'teacher.pth'}"))


@pytest.mark.parametrize("folded", [False, True])
def test_rasa_is_left_out(folded: bool, begun: Callable[..., Trainer], run_folder: Path, tmp_path: Path) -> None:
    content = torch.load(run_folder / "teacher.pth", weights_only=True)
    rasa = {f"rasa_head.{name}": tensor for name, tensor in RASAHead(32, 2).state_dict().items()}
    extra = {"backbone.patch_map.weight": 2 * torch.eye(32)} if folded else rasa
    description = {name: value for name, value in content["description"].items() if name != "hash"}
    save_teacher(tmp_path / "with_rasa.pth", content["teacher"] | extra, description)
    trainer = begun(f"init_from={tmp_path / 'with_rasa.pth'}")
    assert same(trainer.pair.teacher.backbone, load_model(checkpoint=run_folder).state_dict())
    assert any("its RASA head is left out" in line for line in trainer.start.lines)


def test_settings_unlike_the_files_are_said(begun: Callable[..., Trainer], tmp_path: Path) -> None:
    lines = begun("model.interpolate_offset=0", "data.crops.std=[0.5,0.5,0.5]").start.lines
    warnings = "\n".join(line for line in lines if line.startswith("WARNING"))
    assert "trained with mean [0.1, 0.2, 0.3], this run normalises with [0.485, 0.456, 0.406]" in warnings
    assert "set data.crops.mean=[0.1,0.2,0.3] to agree" in warnings
    assert "set data.crops.std=[0.229,0.224,0.225] to agree" in warnings
    assert "set model.interpolate_offset=0.1 to agree" in warnings
    suggested = ("data.crops.mean=[0.1,0.2,0.3]", "optimizer.freeze_backbone_steps=1", f"output={tmp_path / 'again'}")
    assert not any(line.startswith("WARNING") for line in begun(*suggested).start.lines)


def test_heads_without_their_own_steps_are_said(begun: Callable[..., Trainer], tmp_path: Path) -> None:
    """New ones would teach a trained backbone at once; loaded ones would begin again."""
    alone = ("steps=6", "optimizer.freeze_backbone_steps=3")
    at_once = ("optimizer.freeze_last_layer_steps=0", "teacher.temperature_warmup_steps=0")
    told = [
        "\n".join(begun(f"output={tmp_path / str(number)}", *options).start.lines)
        for number, options in enumerate([(), alone, ("init_heads=loaded",), ("init_heads=loaded", *at_once)])
    ]
    assert ["WARNING: the backbone learns from random heads" in text for text in told] == [True, False, False, False]
    assert ["set optimizer.freeze_backbone_steps, such as 1000" in text for text in told] == [True, False, False, False]
    for setting in at_once:
        assert [setting in text for text in told] == [False, False, True, False]


def test_a_continued_run_does_not_need_the_file(
    train: Callable[..., Trainer], run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It goes on from its own state to the same losses, refuses another beginning, and remembers its own."""
    shutil.copytree(run_folder, tmp_path / "gone")
    options = (
        "model.num_heads=4",
        f"init_from={tmp_path / 'gone'}",
        "init_heads=loaded",
        "data.crops.mean=[0.1,0.2,0.3]",
    )
    whole = train(*options, f"output={tmp_path / 'whole'}")
    stopped = Trainer(load_config(tmp_path / "whole/config.yaml", [f"output={tmp_path / 'run'}"]))
    step = stopped.step

    def step_and_stop(batches: Any) -> Any:
        result = step(batches)
        if stopped.state.step == 3:
            stopped.stop.signal_number = signal.SIGTERM
        return result

    stopped.step = step_and_stop  # type: ignore[method-assign]
    with pytest.raises(Interrupted):
        stopped.run()
    shutil.rmtree(tmp_path / "gone")
    assert main(["--config", str(tmp_path / "whole/config.yaml"), f"output={tmp_path / 'run'}", "--dry-run"]) == 0
    assert "began with gone (step 3, hash" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"init_from: there .*gone.*, here ''"):
        train("model.num_heads=4", "data.crops.mean=[0.1,0.2,0.3]")
    continued = train(*options)
    for name, tensor in whole.pair.state_dict().items():
        assert torch.equal(continued.pair.state_dict()[name], tensor), name
    origin = describe(tmp_path / "run" / "teacher.pth")["initialised_from"]
    assert origin == describe(tmp_path / "whole" / "teacher.pth")["initialised_from"]
    assert continued.start.lines == [f"began with gone (step 3, hash {origin['hash'][:12]})"]


def test_the_teacher_says_what_it_began_with(train: Callable[..., Trainer], run_folder: Path, tmp_path: Path) -> None:
    train("model.num_heads=4", f"init_from={run_folder}", "data.crops.global_size=84", "steps=2")
    told, earlier = describe(tmp_path / "run/teacher.pth"), describe(run_folder)
    assert told["stage"] == "high-resolution"
    assert told["initialised_from"] == {
        "name": "mine",
        "hash": earlier["hash"],
        "heads": "new",
        **{name: earlier[name] for name in ("stage", "step", "images_seen")},
    }
    assert (earlier["stage"], "initialised_from" in earlier) == ("pretrain", False)
    written = describe(tmp_path / "run/checkpoints/step_0000002")
    assert written["initialised_from"] == told["initialised_from"]
    lines = list(info.lines(info.inspect(tmp_path / "run/teacher.pth")))
    assert f"began with    mine, hash {earlier['hash']}" in lines


@pytest.mark.parametrize("weights", ["@IN21K_224", "@in21k-224"])
def test_published_weights_by_name(
    weights: str, begun: Callable[..., Trainer], run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    (tmp_path / "hub/checkpoints").mkdir(parents=True)
    shutil.copy(run_folder / "teacher.pth", tmp_path / "hub/checkpoints/franca_vitb14_In21K_224.pth")
    monkeypatch.setattr(cache, "download", lambda _, target, *__: target)
    trainer = begun(f"init_from=franca_vitb14{weights}")
    assert same(trainer.pair.teacher.backbone, load_model(checkpoint=run_folder).state_dict())
    assert trainer.start.facts["initialised_from"]["name"] == f"franca_vitb14{weights}"
    assert any("research-only licence" in line for line in trainer.start.lines)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("nowhere.pth", "there is no such file or folder; give a .pth .* such as franca_vitb14@IN21K_224"),
        ("franca_vitb14@ADE20K", "weights='ADE20K' are not published for vit_base. There are: IN21K"),
        ("franca_vitl14@IN21K", "a copy of DINOv2-L"),
        ("franca_vits14", "no weights are published for vit_small"),
    ],
)
def test_what_names_no_weights_is_refused(given: str, message: str, begun: Callable[..., Trainer]) -> None:
    with pytest.raises(ConfigError, match=f"init_from.*{message}"):
        begun(f"init_from={given}")


def test_dry_run_says_what_a_run_would_begin_with(
    tiny_file: Path, run_folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    options = ["--config", str(tiny_file), f"init_from={run_folder}", f"output={tmp_path / 'run'}", "--dry-run"]
    assert main([*options, "model.num_heads=4"]) == 0
    assert "begins with mine (step 3, hash" in capsys.readouterr().out
    assert main(options) == 2
    assert "To begin with that file set model.num_heads=4" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_what_needs_a_download_is_said_without_it(
    tiny_file: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(cache, "download", lambda *_: pytest.fail("it must not be fetched"))
    options = ["--config", str(tiny_file), "init_from=franca_vitb14@IN21K_224"]
    assert main([*options, "--dry-run"]) == 0
    assert "franca_vitb14_In21K_224.pth is fetched when the run starts" in capsys.readouterr().out
    assert main([*options, "--estimate"]) == 0


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["init_heads=old"], "init_heads='old' must be new or loaded"),
        (["init_heads=loaded"], "init_heads=loaded, but init_from names no file"),
        (["optimizer.freeze_backbone_steps=2"], "freeze_backbone_steps=2, but init_from names no file"),
        (
            ["init_from=a.pth", "steps=6", "optimizer.freeze_backbone_steps=6"],
            "freeze_backbone_steps=6 must be below steps=6",
        ),
        (
            ["init_from=a.pth", "steps=6", "optimizer.freeze_backbone_steps=3", "optimizer.warmup_steps=3"],
            r"freeze_backbone_steps=3 \+ optimizer.warmup_steps=3 must be below steps=6",
        ),
        (["optimizer.freeze_lr=0"], "freeze_lr=0.* must be above 0"),
        (["optimizer.freeze_backbone_steps=-1"], "freeze_backbone_steps=-1 must not be negative"),
    ],
)
def test_options_are_checked(overrides: list[str], message: str, tiny: Callable[..., TrainConfig]) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny(*overrides)
