"""Photos of one side as uncompressed tar files of about 150 MB: what S3 and SageMaker's File mode move fast.

A member is called `CLASS/relative/path.jpg` and holds the photo's original bytes. The same photos give the same bytes.
"""

import io
import json
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from contract import CLASSES_FILE
from failures import UserError

SHARD_BYTES = 150_000_000


@dataclass(frozen=True, slots=True)
class Photo:
    """Where a photo's bytes lie. Small, so that millions fit in memory; the photos themselves never do."""

    name: str
    """`CLASS/relative/path.jpg`"""
    shard: str
    offset: int
    size: int

    @property
    def label(self) -> str:
        """The class."""
        return self.name.split("/", 1)[0]

    def read(self) -> bytes:
        """The photo's original bytes."""
        with open(self.shard, "rb") as file:  # noqa: PTH123 - a str on purpose: it is pickled once a photo
            file.seek(self.offset)
            return file.read(self.size)


class Writer:
    """Writes `shard-00000.tar`, `shard-00001.tar`, … and the class list into `folder`, which must be empty."""

    def __init__(self, folder: Path, classes: list[str], shard_bytes: int = SHARD_BYTES) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        stale = sorted(path.name for path in folder.iterdir())
        if stale:
            raise UserError(
                f"{folder} is not empty (it holds {stale[0]}): expected an empty folder to write shards into"
            )
        (folder / CLASSES_FILE).write_text(json.dumps(classes))
        self._folder, self._limit = folder, shard_bytes
        self._count = self._size = 0
        self._tar: tarfile.TarFile | None = None

    def add(self, name: str, data: bytes) -> None:
        """One photo. Call in sorted order for deterministic shards."""
        if self._tar is None or (self._size and self._size + len(data) > self._limit):
            self._open_next()
        assert self._tar is not None
        info = tarfile.TarInfo(name)  # mtime, uid and gid are 0, the mode is 0644
        info.size = len(data)
        self._tar.addfile(info, io.BytesIO(data))
        self._tar.members.clear()  # type: ignore[attr-defined] # it would keep a record of every photo
        self._size += len(data)

    def _open_next(self) -> None:
        if self._tar is not None:
            self._tar.close()
        path = self._folder / f"shard-{self._count:05d}.tar"
        self._tar = tarfile.open(path, "w", format=tarfile.PAX_FORMAT)  # noqa: SIM115 - closed in __exit__
        self._count, self._size = self._count + 1, 0

    def __enter__(self) -> "Writer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._tar is not None:
            self._tar.close()


def classes(folder: Path) -> list[str]:
    """The sorted class list of a side.

    Raises:
        UserError: the folder was not written by Split.
    """
    try:
        names = json.loads((folder / CLASSES_FILE).read_text())
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder / CLASSES_FILE} cannot be read ({error}); expected a folder that Split wrote"
        ) from None
    if not (isinstance(names, list) and all(isinstance(name, str) for name in names) and len(names) >= 2):
        raise UserError(f"{folder / CLASSES_FILE} is not a list of two or more class names")
    return names


def index(folder: Path) -> list[Photo]:
    """The photos of a side, in the order of the shards; only the tars' headers are read.

    Raises:
        UserError: no shard there, or one that is no tar file, or a photo of a class that is not in the list.
    """
    paths = sorted(folder.glob("shard-*.tar"))
    if not paths:
        raise UserError(f"{folder} holds no shard-*.tar; expected a folder that Split wrote")
    photos: list[Photo] = []
    for path in paths:
        try:
            with tarfile.open(path, "r:") as tar:
                photos.extend(Photo(m.name, str(path), m.offset_data, m.size) for m in _members(tar))
        except tarfile.TarError as error:
            raise UserError(f"{path} cannot be read: {error}; run Split again") from None
    known = set(classes(folder))
    for photo in photos:
        if photo.label not in known:
            raise UserError(f"{photo.shard} holds {photo.name}, whose class is not in {CLASSES_FILE}")
    return photos


def _members(tar: tarfile.TarFile) -> Iterable[tarfile.TarInfo]:
    while (member := tar.next()) is not None:
        if member.isfile():
            yield member
        tar.members.clear()  # type: ignore[attr-defined] # else it keeps a large record of every photo
    # At a header it cannot read, tarfile stops as if that were the end.
    assert tar.fileobj is not None
    tar.fileobj.seek(tar.offset)
    end = tar.fileobj.read(tarfile.BLOCKSIZE)
    if len(end) < tarfile.BLOCKSIZE or any(end):
        raise tarfile.ReadError(f"the header at byte {tar.offset} is damaged or cut off")
