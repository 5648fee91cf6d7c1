"""The parts of a release that hold tensors: teachers, whole states, a RASA head. Written, then read back."""

import json
import pickle
import shutil
from pathlib import Path
from typing import Any, BinaryIO

import torch
import torch.distributed.checkpoint as dcp

from franca.files import write_atomically
from franca.hub import CheckpointError, load_model, save_teacher
from franca.hub.checkpoint import hash_tensors
from franca.hub.files import read_file
from franca.hub.layouts import build_rasa, recognise, recognise_rasa
from franca.publish.errors import PublishError
from franca.publish.placing import place
from franca.publish.privacy import without_places
from franca.publish.run import files_of
from franca.train.checkpoint import MANIFEST

TEACHER, RASA_HEAD, RASA_FACTS = "teacher.pth", "teacher_rasa.pth", "rasa.json"
INDEX = ".metadata"  # of torch.distributed.checkpoint
WRITTEN_BY = ("franca", "torch", "python")


def release_teacher(source: Path, target: Path, data: str) -> dict[str, Any]:
    """Write a run's teacher with a description that names no place; ``data`` is what it says of the images.

    Returns the description. Raises CheckpointError where the source is damaged or no teacher of a run.
    """
    content = read_file(source)
    described = recognise(content, str(source)).description  # checks the hash
    if described is None or "hash" not in described:
        raise CheckpointError(f"{source} does not describe itself: it is no teacher of a run")
    versions = {name: described[name] for name in WRITTEN_BY if name in described}
    public = without_places({name: value for name, value in described.items() if name not in WRITTEN_BY})
    written = save_teacher(target, content["teacher"], public | {"data": data, "trained_with": versions})
    if written["hash"] != described["hash"]:
        raise CheckpointError(f"{target}: its tensors have another hash than those of {source}; publish again")
    return written


def check_teacher(file: Path, expected: str) -> int:
    """Load a released teacher as its users will. Returns the number of its backbone's parameters.

    Raises CheckpointError where it can't be loaded or its tensors don't have the ``expected`` hash.
    """
    model = load_model(checkpoint=file)  # checks the hash in the description
    if read_file(file)["description"]["hash"] != expected:
        raise CheckpointError(f"{file} has another hash than the teacher it was made from; publish again")
    return sum(parameter.numel() for parameter in model.parameters())


def release_state(source: Path, target: Path) -> None:
    """Place a whole state in the folder ``target``, beside the released teacher that lies there already.

    The state's index names the folder it was written to; it is written again without. Raises OSError, PublishError.
    """
    sizes = files_of(source)
    for name in sizes:
        if name == INDEX:
            _write_index(source, target / name)
        elif name != TEACHER:
            place(source / name, target / name)
    manifest = json.loads((source / MANIFEST).read_text())
    manifest["files"] = {name: (target / name).stat().st_size for name in sizes}
    _write_text(target / MANIFEST, json.dumps(without_places(manifest), indent=1))


def check_state(folder: Path) -> None:
    """Read the teacher out of a released state. Raises CheckpointError where it isn't that of the file beside."""
    tensors = read_file(folder / TEACHER)["teacher"]
    found = {name: torch.empty_like(tensor) for name, tensor in tensors.items()}
    try:
        dcp.load({"teacher": found}, checkpoint_id=folder, no_dist=True)
    except (Exception, dcp.CheckpointException) as error:  # unpickling raises whatever the damage makes of it
        raise CheckpointError(f"{folder} can't be read back ({error}); the run's state is damaged") from error
    if hash_tensors(found) != hash_tensors(tensors):
        raise CheckpointError(f"{folder} holds another teacher in its state than in {TEACHER}; one of them is damaged")


def _write_index(source: Path, target: Path) -> None:
    index = dcp.FileSystemReader(source).read_metadata()
    index.storage_meta = None

    def write(file: BinaryIO) -> None:
        pickle.dump(index, file)

    write_atomically(target, write)


def release_rasa(run: Path, folder: Path, teacher: Path) -> dict[str, Any]:
    """Copy the head of a RASA run beside the released ``teacher``, with what is known about it.

    Returns what is known. Raises PublishError where the run isn't finished, or its head belongs to other weights.
    """
    head, about = run / "rasa.pth", run / "rasa.json"
    if not head.is_file() or not about.is_file():
        raise PublishError(f"{run} holds no rasa.pth and rasa.json: give the output folder of a finished RASA run")
    try:
        facts = json.loads(about.read_text(encoding="utf-8"))
        owner = facts["backbone_hash"]
    except (ValueError, KeyError, TypeError):
        raise PublishError(f"{about} can't be read: run RASA again") from None
    model = load_model(checkpoint=teacher)
    own = hash_tensors(model.state_dict())
    if owner != own:
        raise PublishError(
            f"the RASA head in {run} belongs to other weights than this teacher (hash {owner[:12] or 'not told'}, not "
            f"{own[:12]}): train one on this teacher, or publish with --steps the step it was trained on"
        )
    tensors = recognise_rasa(read_file(head), str(head))
    build_rasa(tensors, model.embed_dim, str(head))
    shutil.copyfile(head, folder / RASA_HEAD)
    public = without_places(facts) | {"backbone": TEACHER, "hash": hash_tensors(tensors)}
    _write_text(folder / RASA_FACTS, json.dumps(public, indent=2) + "\n")
    load_model(checkpoint=folder / TEACHER, use_rasa_head=True)
    return public


def _write_text(path: Path, text: str) -> None:
    def write(file: BinaryIO) -> None:
        file.write(text.encode())

    write_atomically(path, write)
