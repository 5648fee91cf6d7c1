"""The images that stay as a set of their own: shards without what the lists drop, or a folder of links."""

import tarfile
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from franca import __version__
from franca.data.preparation.errors import PreparationError
from franca.data.preparation.lists import read_dropped
from franca.data.preparation.report import counts_text
from franca.data.preparation.work_folder import WorkFolder
from franca.data.sources.folder import ImageFolder
from franca.data.sources.tar_members import is_image, open_archive, walk
from franca.hub.progress import Progress

MEANING = {"listed": "in a list of dropped images"}
Places = Mapping[str, Sequence[tuple[Path, int, int]]]  # shard -> (list, first byte, end) of the lines about it


def apply(images: str | Path, lists: Sequence[str | Path], output: str | Path, restart: bool = False) -> dict[str, Any]:
    """Write `images/` without what the lists drop, `report.json` and `report.txt`; `images` itself stays as it is.

    Shards are written anew, without the dropped samples (image, caption and metadata go together). Of a folder hard
    links are made, and copies where the file system has none.

    Args:
        images: folder of *.tar shards or of images, as it was embedded.
        lists: `dropped.tsv` of finished steps.
        output: folder of this step; the same call goes on in it.
        restart: throw away what another call left in `output`.

    Raises:
        PreparationError: a list that can't be read or is about other images, or other inputs than before.
    """
    root = Path(images).expanduser()
    given = [Path(file).expanduser() for file in lists]
    shards = find_tars(root)
    places = _by_shard(given, shards)
    with WorkFolder(Path(output), "apply", {"images": str(root.absolute())}, [*given, *shards], restart) as work:
        report = work.report
        if report is None:
            told = _filter_shards(work, shards, places) if shards else [_link(work, root, places)]
            report = _report(told)
            work.finish(report, _text(report))
    return report


def find_tars(folder: Path) -> list[Path]:
    """The shards directly in a folder, by name; none for a folder of images."""
    if not folder.is_dir():
        raise PreparationError(f"{folder} is no folder of images or of *.tar shards")
    return sorted(file for file in folder.iterdir() if file.suffix.lower() == ".tar" and file.name[0] != ".")


def _by_shard(lists: Sequence[Path], shards: Sequence[Path]) -> Places:
    """Where the lists speak of each shard, which they do in one piece; all of it under "" for a folder."""
    places: dict[str, list[tuple[Path, int, int]]] = defaultdict(list)
    known = {shard.name for shard in shards}
    for file in lists:
        current, first = "", 0
        for offset, name in read_dropped(file):
            shard = name.decode(errors="surrogateescape").partition("/")[0] if shards else ""
            if shards and shard not in known:
                raise PreparationError(
                    f"{file} drops {name!r}, but there is no shard {shard!r}: is it about other images?"
                )
            if shard != current:
                places[current].append((file, first, offset))
                current, first = shard, offset
        places[current].append((file, first, file.stat().st_size))
    return places


def _listed(places: Iterable[tuple[Path, int, int]]) -> set[str]:
    """The names in some pieces of lists."""
    names = set()
    for file, first, end in places:
        with file.open("rb") as lines:
            lines.seek(first)
            text = lines.read(end - first)
        names |= {line.partition(b"\t")[0].decode(errors="surrogateescape") for line in text.splitlines()}
    return names


def _filter_shards(work: WorkFolder, shards: Sequence[Path], places: Places) -> list[dict[str, Any]]:
    told = []
    with Progress("shards", sum(shard.stat().st_size for shard in shards)) as progress:
        for number, shard in enumerate(shards):
            told.append(work.part(f"shards/{number:08}", partial(_filter_shard, shard, places.get(shard.name, []))))
            progress.add(shard.stat().st_size)
    parts = {shard.name: work.folder(f"shards/{number:08}") / "shard.tar" for number, shard in enumerate(shards)}
    work.publish("images", {name: file for (name, file), one in zip(parts.items(), told, strict=True) if one["kept"]})
    return told


def _filter_shard(shard: Path, places: Sequence[tuple[Path, int, int]], folder: Path) -> dict[str, Any]:
    """Copy a shard without the samples whose image is listed."""
    dropped = {_key(name.partition("/")[2]) for name in _listed(places)}
    counts = {"kept": 0, "listed": 0}
    damages: list[str] = []
    try:
        with (
            shard.open("rb") as file,
            open_archive(file, seekable=False) as archive,
            tarfile.open(folder / "shard.tar", "w") as copy,
        ):
            for member in walk(archive, damages.append):
                listed = _key(member.name) in dropped
                if is_image(member):
                    counts["listed" if listed else "kept"] += 1
                if member.isreg() and not listed:
                    copy.addfile(member, archive.extractfile(member))
    except (OSError, tarfile.TarError, EOFError) as error:
        damages.append(f"{type(error).__name__}: {error}")
    return counts | {"damage": f"{shard.name}: {damages[0]}" if damages else ""}


def _key(member: str) -> str:
    """What the members of one sample have in common: the path up to the first dot of the file's name."""
    path = PurePosixPath(member)
    return str(path.with_name(path.name.partition(".")[0] or path.name))


def _link(work: WorkFolder, root: Path, places: Places) -> dict[str, Any]:
    source = ImageFolder(str(root))
    dropped = _listed(places.get("", []))
    names = [source.name(number) for number in range(len(source))]
    unknown = dropped.difference(names)
    if unknown:
        raise PreparationError(f"{root} holds no {min(unknown)!r}, which a list drops: is it about other images?")
    work.publish("images", {name: root / name for name in names if name not in dropped})
    return {"kept": len(names) - len(dropped), "listed": len(dropped), "damage": ""}


def _report(told: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    kept, listed = (sum(one[name] for one in told) for name in ("kept", "listed"))
    return {
        "step": "apply",
        "images": kept + listed,
        "kept": kept,
        "dropped": {"listed": listed},
        "damaged": [one["damage"] for one in told if one["damage"]],
        "versions": {"franca": __version__},
    }


def _text(report: Mapping[str, Any]) -> str:
    text = counts_text("Images", report["images"], report["kept"], report["dropped"], MEANING)
    if report["damaged"]:
        text += f"\n{len(report['damaged'])} shards are damaged, the rest of them was copied. The first:\n"
        text += "".join(f"  {damage}\n" for damage in report["damaged"][:10])
    return text
