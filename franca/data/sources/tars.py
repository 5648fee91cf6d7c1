"""Images in tar files, one file per class, read from where they lie in it: nothing is unpacked."""

import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from franca.data.decode import decode_image
from franca.data.errors import EmptyFolder, MissingFolder, UnreadableImage
from franca.data.sources.tar_index import Tar, TarIndex, index_tars

OPEN_FILES = 64  # per process
FILES_TRIED = 100  # how many unreadable images, spread over the list, make the folder unusable


class TarFolder:
    """The images in the uncompressed tar files directly below ``path``, tar by tar in the order of their names.

    classes, labels: names of the tars without their ending, and the number of each image's own, when there are two or
    more; that is how ImageNet-21K comes. Damaged tars are passed over as far as they are damaged, with a warning.
    Raises MissingFolder, or EmptyFolder when more than half of the tars hold no image that can be
    read.
    """

    def __init__(self, path: str, channels: int = 3) -> None:
        path = os.path.expanduser(path)
        if not os.path.isdir(path):
            what = "is a file" if os.path.exists(path) else "does not exist"
            raise MissingFolder(f"data.path={path!r} {what}; name a folder of tar files, one per class")
        self.root = path
        self.channels = channels
        names = sorted(name for name in os.listdir(path) if name.lower().endswith(".tar") and not name.startswith("."))
        if not names:
            raise EmptyFolder(f"data.path={path!r} holds no file that ends in .tar; {_advice(path)}")
        self._names = names
        self.classes = [os.path.splitext(name)[0] for name in names] if len(names) > 1 else []
        self._index: TarIndex = index_tars(path, names)
        self._files: OrderedDict[int, int] = OrderedDict()  # tar number -> open file
        self._check_usable()

    def __len__(self) -> int:
        return len(self._index)

    @property
    def labels(self) -> list[int] | None:
        """The class number of each image; made when asked for, as millions of them take long."""
        if not self.classes:
            return None
        return np.repeat(np.arange(len(self.classes)), np.diff(self._index.starts)).tolist()

    def name(self, index: int) -> str:
        """Tar and member, for example "n02084071.tar/n02084071_1.JPEG"."""
        return f"{self._names[self._index.tar_of(index)]}/{self._index.names[index]}"

    def load(self, index: int) -> Tensor:
        """Image ``index``, (channels, H, W) uint8. Raises UnreadableImage."""
        name = self.name(index)
        try:
            content = self._read(index)
        except OSError as error:
            raise UnreadableImage(name, f"{type(error).__name__}: {error}") from error
        return decode_image(content, name, self.channels)

    def _read(self, index: int) -> bytes:
        size = int(self._index.sizes[index])
        content = os.pread(self._file(self._index.tar_of(index)), size, int(self._index.offsets[index]))
        if len(content) < size:
            raise OSError("the tar has become shorter; start again to index it anew")
        return content

    def _file(self, tar: int) -> int:
        """The open file of a tar; its place is never moved, so processes that were forked may share it."""
        if tar in self._files:
            self._files.move_to_end(tar)
            return self._files[tar]
        file = os.open(os.path.join(self.root, self._names[tar]), os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        status = os.fstat(file)
        if Tar(self._names[tar], status.st_size, status.st_mtime_ns) != self._index.tars[tar]:
            os.close(file)
            raise OSError("the tar has changed since it was indexed; start again to index it anew")
        self._files[tar] = file
        if len(self._files) > OPEN_FILES:
            os.close(self._files.popitem(last=False)[1])
        return file

    def _check_usable(self) -> None:
        index = self._index
        unreadable = int((np.diff(index.starts) == 0).sum())
        if unreadable * 2 > len(self._names):
            raise EmptyFolder(
                f"data.path={self.root!r}: {unreadable} of {len(self._names)} tar files hold no image that can be "
                f"read: {index.damage_log()}; {_advice(self.root)}"
            )
        reasons = []
        for number in range(0, len(self), -(-len(self) // FILES_TRIED)):
            try:
                self.load(number)
                return
            except UnreadableImage as error:
                reasons.append(f"{error.name} ({error.reason})")
        raise EmptyFolder(
            f"data.path={self.root!r}: none of {len(reasons)} images tried can be read: {'; '.join(reasons[:3])}"
        )

    def __getstate__(self) -> dict[str, Any]:
        """For another process: a mapped index is opened there again, not copied."""
        mapped = isinstance(self._index.offsets, np.memmap)
        return vars(self) | {"_files": OrderedDict(), "_index": None if mapped else self._index}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        if state["_index"] is None:
            self._index = index_tars(self.root, self._names)

    def __del__(self) -> None:
        for file in vars(self).get("_files", {}).values():
            os.close(file)


def _advice(path: str) -> str:
    """What else the folder may be."""
    if any(Path(path).glob("*.tar.gz")) or any(Path(path).glob("*.tgz")):
        return "compressed tars cannot be read by offset: unpack the compression (gunzip), or use data.source=shards"
    return "for folders of images use data.source=folder"
