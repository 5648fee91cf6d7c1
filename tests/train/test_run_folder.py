"""The output folder belongs to one run."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from franca import files
from franca.config import ConfigError
from franca.train.build import OPERATIONAL, claim_run_folder, flatten
from franca.train.config import TrainConfig, load_config
from franca.train.trainer import Trainer


def test_the_folder_of_another_run_is_refused_by_the_differing_keys(tiny: Callable[..., TrainConfig]) -> None:
    recorded = claim_run_folder(tiny()) / "config.yaml"
    before = recorded.read_text()
    with pytest.raises(ConfigError) as caught:
        claim_run_folder(tiny("optimizer.lr=0.5", "heads.dino.prototypes=32", "log.every=7", "data.crops.mean=[0,0,0]"))
    message = str(caught.value)
    assert "belongs to another run" in message
    assert "optimizer.lr: there 0.001, here 0.5" in message
    assert "heads.dino.prototypes: there 16, here 32" in message
    assert "data.crops.mean" in message
    assert "log.every" not in message
    assert message.count(": there ") == 3
    assert recorded.read_text() == before


def test_keys_that_change_nothing_learned_may_change(tiny: Callable[..., TrainConfig]) -> None:
    claim_run_folder(tiny())
    changed = [
        *("data.workers=1", "data.prefetch=3", "data.start_method=spawn", "data.max_broken_share=0.5", "device=cpu"),
        *("checkpoint.every=3", "checkpoint.keep_last=5", "evaluation.every=3", "monitor.every=5"),
        *("recovery.max_skips=1", "log.every=3", "log.tensorboard=true"),
    ]
    output = claim_run_folder(tiny(*changed))
    recorded = flatten(load_config(output / "config.yaml"))
    assert recorded == flatten(tiny(*changed)), "the file shows the configuration that ran last"


def test_operational_keys_are_keys() -> None:
    keys = flatten(TrainConfig())
    for name in OPERATIONAL:
        assert any(key == name or key.startswith(f"{name}.") for key in keys), name


@pytest.mark.parametrize("name", ["thesis.tex", "checkpoints"])
def test_a_folder_with_other_files_is_refused(name: str, tiny: Callable[..., TrainConfig], tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).mkdir()
    with pytest.raises(ConfigError, match=r"run' holds files that no run of franca\.train made"):
        claim_run_folder(tiny())
    assert [path.name for path in (tmp_path / "run").iterdir()] == [name]


def test_an_empty_folder_is_fine(tiny: Callable[..., TrainConfig], tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    assert claim_run_folder(tiny()) == tmp_path / "run"


def test_a_kill_while_the_configuration_is_written_spoils_nothing(
    tiny: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def die(*_: object) -> None:
        raise Killed

    def leave(*_: object, **__: object) -> None:
        """A killed process removes nothing."""

    for config in (tiny(), tiny()):  # a new folder, then the folder of the same run
        with monkeypatch.context() as patch:
            patch.setattr(files.os, "replace", die)
            patch.setattr(Path, "unlink", leave)
            with pytest.raises(Killed):
                claim_run_folder(config)
        output = claim_run_folder(config)
        assert flatten(load_config(output / "config.yaml")) == flatten(config)


def test_a_second_process_in_the_same_folder_is_refused_until_the_first_is_gone(
    tiny: Callable[..., TrainConfig],
) -> None:
    trainer = Trainer(tiny("steps=2"))
    program = "import sys, fcntl; f = open(sys.argv[1], 'w'); fcntl.lockf(f, fcntl.LOCK_EX); print('held'); input()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", program, trainer.output / ".lock"], **pipes) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(ConfigError, match=r"run' is in use: another process is training there"):
            trainer.run()
        assert trainer.checkpoints.latest() is None
        other.kill()
    trainer.run()
    assert trainer.state.step == 2


def test_where_there_are_no_locks_nothing_is_held(
    train: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(files.fcntl, "lockf", refuse)
    assert train("steps=2").state.step == 2


@pytest.mark.parametrize("place", ["/proc/franca", "{tmp}/file", "{tmp}/file/below"])
def test_a_folder_that_cannot_be_written_is_named(place: str, tiny: Callable[..., TrainConfig], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file")
    output = place.format(tmp=tmp_path)
    with pytest.raises(ConfigError, match=f"output='{output}' can't be written"):
        claim_run_folder(tiny(f"output={output}"))


def test_a_recorded_configuration_of_another_version_is_named(tiny: Callable[..., TrainConfig], tmp_path: Path) -> None:
    recorded = claim_run_folder(tiny()) / "config.yaml"
    recorded.write_text(recorded.read_text() + "colour: blue\n")
    with pytest.raises(ConfigError, match=r"config\.yaml.*colour"):
        claim_run_folder(tiny())
