"""What a release consists of: manifest.json for programs, SHA256SUMS for `sha256sum -c`."""

import hashlib
import json
from pathlib import Path
from typing import Any

from franca.files import replace_text
from franca.hub.progress import Progress
from franca.publish.placing import BLOCK, MANIFEST, SUMS

FORMAT = 1


def write_listing(folder: Path, head: dict[str, Any], facts: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Write both lists of the files in ``folder``.

    Args:
        head: what the manifest says of the release as a whole.
        facts: relative path, of a file or of a folder -> what is known of it and of all below.

    Returns the manifest's entries: path, bytes, sha256 and the facts of each file.
    """
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    sizes = {name: (folder / name).stat().st_size for name in names}
    entries = []
    with Progress("SHA-256 of all files", sum(sizes.values())) as progress:
        for name in names:
            known = facts.get(str(Path(name).parent), {}) | facts.get(name, {})
            entries.append({"path": name, "bytes": sizes[name], "sha256": _sha256(folder / name, progress), **known})
    replace_text(folder / MANIFEST, json.dumps({"format": FORMAT, **head, "files": entries}, indent=2) + "\n")
    own = hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()
    sums = [(entry["sha256"], entry["path"]) for entry in entries] + [(own, MANIFEST)]
    replace_text(folder / SUMS, "".join(f"{digest}  {name}\n" for digest, name in sums))
    return entries


def _sha256(file: Path, progress: Progress) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(BLOCK):
            digest.update(block)
            progress.add(len(block))
    return digest.hexdigest()
