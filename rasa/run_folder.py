"""What a RASA run leaves in its folder, and how it goes on from there."""

import hashlib
import json
import pickle
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import nn

from franca.config import ConfigError, dump_config
from franca.data.sources import Source
from franca.eval.protocols.position_moments import Moments
from franca.files import write_atomically
from franca.hub import save_teacher
from franca.hub.architecture import name_architecture
from franca.hub.checkpoint import hash_tensors
from franca.models import RASAHead, VisionTransformer
from rasa.config import RasaConfig
from rasa.features import Engine
from rasa.fit import RASAFit, Round
from rasa.fold import fold

READ_BY_BOTH = ("seed", "solver", "saturation", "backbone")  # keys that decide planes whatever the solver


class RunFolder:
    """`moments.pth` after the closed-form pass over the images, `rounds.pth` after every round; `rasa.pth` (the
    published layout), `rasa.json` and, for a Franca backbone, `folded.pth` at the end.

    The folder must be there, and held by this process.

    Raises:
        ConfigError: the folder holds a run of other images, another backbone or configuration, or files of something
            else.
        OSError: the folder can't be written to.
    """

    def __init__(self, config: RasaConfig, engine: Engine, source: Source) -> None:
        self.config, self.backbone = config, engine.backbone
        self.path = Path(config.output).expanduser()
        backbone = engine.backbone
        self.backbone_hash = hash_tensors(backbone.model.state_dict()) if isinstance(backbone.model, nn.Module) else ""
        self.decisive = _decisive(config, self.backbone_hash, engine.precision, source)
        saved = self._saved("rounds.pth") or {"rounds": [], "stopped": ""}
        if not saved["rounds"] and self._saved("moments.pth") is None:
            self._refuse_others()
        self.rounds = [Round(**one) for one in saved["rounds"]]
        self.stopped: str = saved["stopped"]
        self._write("config.yaml", dump_config(config).encode())

    @property
    def finished(self) -> bool:
        """Whether no further round is to be made."""
        return bool(self.stopped) or len(self.rounds) >= self.config.rounds

    def save_round(self, made: Round) -> None:
        """Keep a round, so that a later run starts behind it."""
        self.rounds.append(made)
        self._save("rounds.pth", {"rounds": [asdict(one) for one in self.rounds], "stopped": ""})

    def save_moments(self, fit: Moments, held_out: Moments) -> None:
        """Keep what the pass over the images gave."""
        self._save("moments.pth", {"fit": asdict(fit), "held_out": asdict(held_out)})

    def load_moments(self) -> tuple[Moments, Moments] | None:
        """What an earlier pass gave, if it was finished."""
        saved = self._saved("moments.pth")
        return (Moments(**saved["fit"]), Moments(**saved["held_out"])) if saved else None

    def save_result(self, fit: RASAFit) -> list[Path]:
        """The head, what is known about it, and the folded model; returns the files for users."""
        if len(fit.rounds) < self.config.rounds:
            self.stopped = fit.stopped
        self._save("rounds.pth", {"rounds": [asdict(one) for one in self.rounds], "stopped": self.stopped})
        self._write("rasa.pth", lambda file: torch.save(dict(fit.head.state_dict()), file))
        self.save_about(fit, None)
        files = [self.path / "rasa.pth", self.path / "rasa.json"]
        if isinstance(self.backbone.model, VisionTransformer):
            self._save_folded(self.backbone.model, fit.head)
            files.append(self.path / "folded.pth")
        return files

    def save_about(self, fit: RASAFit, evidence: dict[str, Any] | None) -> None:
        """`rasa.json`: the rounds and their errors, and what they changed where that was measured."""
        self._write("rasa.json", (json.dumps(self._about(fit, evidence), indent=2) + "\n").encode())

    def _refuse_others(self) -> None:
        """Raise ConfigError where this would be the first run in a folder that something else uses."""
        others = {file.name for file in self.path.iterdir() if not file.name.startswith(".")} - {"config.yaml"}
        if others:
            raise ConfigError(
                f"output={str(self.path)!r} holds files that no RASA run made, such as {min(others)}: choose an empty "
                "or new folder"
            )

    def _save_folded(self, model: VisionTransformer, head: RASAHead) -> None:
        folded = fold(model, head)
        state = {f"backbone.{name}": tensor for name, tensor in folded.state_dict().items()}
        description = {
            "arch": name_architecture(model.config),
            "backbone": model.config,
            "stage": "rasa",
            "folded_from": self.backbone.name,
            "folded_from_hash": self.backbone_hash,
            "rasa_rounds": head.n_pos_layers + 1,
            "mean": list(self.backbone.mean),
            "std": list(self.backbone.std),
        }
        save_teacher(self.path / "folded.pth", state, description)

    def _about(self, fit: RASAFit, evidence: dict[str, Any] | None) -> dict[str, Any]:
        rounds = [
            {
                "round": one.number,
                "position_error_train": one.train_error,
                "position_error_held_out": one.held_out_error,
                "position_error_by_chance": one.chance,
                "seconds": one.seconds,
            }
            for one in fit.rounds
        ]
        return {
            "backbone": self.backbone.name,
            "backbone_hash": self.backbone_hash,
            "width": fit.head.input_dim,
            "dimensions_removed": 2 * len(rounds),
            "solver": self.config.solver,
            "stopped": fit.stopped,
            "rounds": rounds,
            "evidence": evidence,
        }

    def _saved(self, name: str) -> dict[str, Any] | None:
        file = self.path / name
        if not file.exists():
            return None
        try:
            content: dict[str, Any] = torch.load(file, weights_only=True)
        except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise ConfigError(f"{file} can't be read ({str(error).splitlines()[0]}): delete it to start anew") from None
        made_with = content["decisive"]
        differ = [key for key in {**made_with, **self.decisive} if made_with.get(key) != self.decisive.get(key)]
        if differ:
            raise ConfigError(
                f"output={str(self.path)!r} holds a RASA run that differs in {', '.join(differ)}: name another folder, "
                "or delete that one"
            )
        return content

    def _save(self, name: str, content: dict[str, Any]) -> None:
        self._write(name, lambda file: torch.save({"decisive": self.decisive, **content}, file))

    def _write(self, name: str, content: Any) -> None:
        def write(file: BinaryIO) -> None:
            file.write(content)

        write_atomically(self.path / name, content if callable(content) else write)


def _decisive(config: RasaConfig, backbone_hash: str, precision: torch.dtype | None, source: Source) -> dict[str, str]:
    """All that planes follow from, by key: backbone, images by name, crops, and what the chosen solver reads."""
    chosen: dict[str, Any] = {name: part for name, part in asdict(config).items() if name in READ_BY_BOTH}
    chosen["data"] = {name: value for name, value in asdict(config.data).items() if name not in ("workers", "path")}
    chosen["evidence"] = {"share": config.evidence.share}
    if config.solver == "gradient":
        chosen["gradient"] = asdict(config.gradient)
        chosen["cache"] = {"patches": config.cache.patches, "where=off": config.cache.where == "off"}
    names = json.dumps([source.name(number) for number in range(len(source))])
    chosen["the images"] = hashlib.sha256(names.encode()).hexdigest()  # a folder may move, its images not change
    chosen["the backbone's weights"] = backbone_hash
    chosen["precision"] = precision
    return {
        (f"{name}.{key}" if key else name): str(value)
        for name, part in chosen.items()
        for key, value in (part.items() if isinstance(part, dict) else [("", part)])
    }
