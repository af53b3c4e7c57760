"""The object store: `s3://BUCKET/KEY` is the file `BUCKET/KEY` under one directory.

Jobs get objects by hard link and give their outputs the same way, so a dataset is on the disk once however many jobs
read it. Objects are replaced whole (written beside, then renamed) and are read-only files, so a job that opens its
input for writing is refused instead of changing the object behind everyone's back.

A file system is not S3: a key can not have an empty, "." or ".." part, nor a part over 255 bytes, nor lie "under"
another object (`a` and `a/b`). Such keys are refused with a message that says so.
"""

import errno
import hashlib
import json
import os
import re
import shutil
import sqlite3
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pipelines.local.errors import ServiceError

_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_RESERVED_BUCKETS = {"endpoints"}  # /endpoints/NAME/invocations is the runtime
_URI = re.compile(r"s3://([^/]+)/?(.*)", re.DOTALL)
_LONGEST_KEY = 1024  # bytes, S3's own limit
_LONGEST_PART = 255  # bytes, the file systems' limit


@dataclass(frozen=True)
class Info:
    """What a HEAD request tells about an object; `modified` is in seconds since 1970."""

    key: str
    size: int
    modified: float
    etag: str
    content_type: str
    metadata: dict[str, str]


class Objects:
    """Buckets and objects under `root`; `scratch` must lie on the same file system, for renames to be atomic."""

    def __init__(self, root: Path, scratch: Path, database: Path) -> None:
        self.root = root
        self.scratch = scratch
        root.mkdir(parents=True, exist_ok=True)
        scratch.mkdir(parents=True, exist_ok=True)
        # What the file itself can not say. ETags of files that came by link are worked out on first use and kept.
        self._lock = threading.Lock()
        self._db = sqlite3.connect(database, check_same_thread=False, isolation_level=None)
        self._db.execute("pragma journal_mode = wal")
        self._db.execute("pragma synchronous = normal")
        self._db.execute("pragma busy_timeout = 10000")
        self._db.execute(
            "create table if not exists object (bucket text, key text, stamp text, etag text, content_type text,"
            " metadata text, primary key (bucket, key)) without rowid"
        )

    # --- buckets

    def create_bucket(self, bucket: str) -> None:
        """Make a bucket; one that is there already stays as it is."""
        if not _BUCKET.fullmatch(bucket) or ".." in bucket:
            raise ServiceError("InvalidBucketName", f"The specified bucket is not valid: {bucket!r}")
        if bucket in _RESERVED_BUCKETS:
            raise ServiceError("InvalidBucketName", f"The local service needs the path /{bucket}/ for itself")
        (self.root / bucket).mkdir(exist_ok=True)

    def delete_bucket(self, bucket: str) -> None:
        """Remove an empty bucket."""
        folder = self._bucket(bucket)
        if next(self.keys(bucket), None) is not None:
            raise ServiceError("BucketNotEmpty", "The bucket you tried to delete is not empty", 409)
        shutil.rmtree(folder)

    def buckets(self) -> list[tuple[str, float]]:
        """Names and creation times."""
        return [(item.name, item.stat().st_mtime) for item in sorted(self.root.iterdir()) if item.is_dir()]

    def has_bucket(self, bucket: str) -> bool:
        """Whether the bucket exists."""
        return bool(_BUCKET.fullmatch(bucket)) and (self.root / bucket).is_dir()

    def _bucket(self, bucket: str) -> Path:
        if not self.has_bucket(bucket):
            raise ServiceError("NoSuchBucket", f"The specified bucket does not exist: {bucket}", 404)
        return self.root / bucket

    # --- one object

    def path(self, bucket: str, key: str) -> Path:
        """Where an object lies. The one gate from keys to the file system: nothing gets outside the bucket's folder."""
        folder = self._bucket(bucket)
        parts = key.split("/")
        if "\0" in key or any(part in ("", ".", "..") for part in parts):
            raise ServiceError(
                "InvalidArgument", f"The local store has no key with an empty, '.' or '..' part: {key!r}"
            )
        if len(key.encode()) > _LONGEST_KEY or any(len(part.encode()) > _LONGEST_PART for part in parts):
            raise ServiceError("KeyTooLongError", f"Your key is too long: {key[:80]!r}…")
        path = folder.joinpath(*parts)
        if not path.parent.resolve().is_relative_to(folder.resolve()) or path.is_symlink():
            raise ServiceError("AccessDenied", f"The key leads out of its bucket: {key!r}", 403)
        return path

    def put(
        self,
        bucket: str,
        key: str,
        file: Path,
        etag: str | None = None,
        content_type: str = "binary/octet-stream",
        metadata: dict[str, str] | None = None,
    ) -> None:
        """Make `file` (in `scratch`, which it leaves) the object, in one rename.

        Without an ETag there is nothing to note: it is worked out when somebody asks for it.
        """
        path = self.path(bucket, key)
        file.chmod(0o400)
        stamp = _stamp(file.stat())
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file.replace(path)
        except (NotADirectoryError, FileExistsError, IsADirectoryError):
            raise ServiceError(
                "InvalidRequest",
                f"{key!r} would lie under or above another object; here, keys are files",
            ) from None
        except OSError as error:
            if error.errno == errno.ENOTEMPTY:  # a folder of that name
                raise ServiceError("InvalidRequest", f"{key!r} is the prefix of other objects") from None
            raise
        if etag is not None:
            self._remember(bucket, key, stamp, etag, content_type, metadata or {})

    def temporary(self) -> Path:
        """A new name in `scratch`."""
        return self.scratch / uuid.uuid4().hex

    def open(self, bucket: str, key: str) -> tuple[int, Info]:
        """An open file descriptor and what the object is: both of the same version, whoever replaces it meanwhile."""
        path = self.path(bucket, key)
        try:
            handle = os.open(path, os.O_RDONLY)
        except (FileNotFoundError, NotADirectoryError):
            raise ServiceError("NoSuchKey", f"The specified key does not exist: {key}", 404) from None
        stat = os.fstat(handle)
        if not path.is_file():
            os.close(handle)
            raise ServiceError("NoSuchKey", f"The specified key does not exist: {key}", 404)
        return handle, self._info(bucket, key, handle, stat)

    def head(self, bucket: str, key: str) -> Info:
        """What the object is.

        Raises:
            ServiceError: NoSuchKey, NoSuchBucket.
        """
        handle, info = self.open(bucket, key)
        os.close(handle)
        return info

    def delete(self, bucket: str, key: str) -> None:
        """Remove an object and the folders it leaves empty; one that is not there is no error, as on S3."""
        path = self.path(bucket, key)
        if path.is_dir():
            return
        try:
            path.unlink()
        except (FileNotFoundError, NotADirectoryError):
            return
        with self._lock:
            self._db.execute("delete from object where bucket = ? and key = ?", (bucket, key))
        for folder in path.parents:
            if folder == self.root / bucket:
                return
            try:
                folder.rmdir()
            except OSError:
                return

    def keys(self, bucket: str, prefix: str = "") -> Iterator[str]:
        """All keys that start with `prefix`, in S3's order (by their UTF-8 bytes)."""
        folder = self._bucket(bucket)
        top = folder
        if "/" in prefix:
            parts = prefix.split("/")[:-1]
            if any(part in ("", ".", "..") for part in parts) or "\0" in prefix:
                return
            top = folder.joinpath(*parts)
        found = []
        for directory, _, files in os.walk(top):
            base = Path(directory).relative_to(folder).as_posix()
            found += [key for name in files if (key := name if base == "." else f"{base}/{name}").startswith(prefix)]
        yield from sorted(found, key=str.encode)

    def read(self, uri: str) -> bytes:
        """The whole content of a small object."""
        bucket, key = split(uri)
        self.head(bucket, key)
        return self.path(bucket, key).read_bytes()

    # --- jobs

    def under(self, uri: str) -> list[tuple[str, Path]]:
        """What an S3Prefix input holds: (path below the prefix, file) in key order.

        A URI that names an object is that object alone, under its own name; otherwise it is taken as a folder.
        """
        bucket, key = split(uri)
        self._bucket(bucket)
        key = key.rstrip("/")
        if key and (path := self.path(bucket, key)).is_file():
            return [(path.name, path)]
        folder = f"{key}/" if key else ""
        return [(name.removeprefix(folder), self.path(bucket, name)) for name in self.keys(bucket, folder)]

    def store(self, source: Path, uri: str) -> None:
        """Make `source` the object at `uri`, by link: nothing is copied."""
        temporary = self.temporary()
        link(source, temporary)
        self.put(*split(uri), temporary)

    def store_folder(self, folder: Path, uri: str, within: Path) -> int:
        """Store every file below `folder` under `uri`; returns how many.

        Symbolic links are followed as far as `within` (the job's own tree) and refused beyond it.
        """
        self._bucket(split(uri)[0])
        count = 0
        for name, path in files(folder, within):
            self.store(path.resolve(), f"{uri.rstrip('/')}/{name}")
            count += 1
        return count

    # --- what the files can not say

    def _remember(
        self, bucket: str, key: str, stamp: str, etag: str, content_type: str, metadata: dict[str, str]
    ) -> None:
        with self._lock:
            self._db.execute(
                "insert or replace into object values (?, ?, ?, ?, ?, ?)",
                (bucket, key, stamp, etag, content_type, json.dumps(metadata)),
            )

    def _info(self, bucket: str, key: str, handle: int, stat: os.stat_result) -> Info:
        with self._lock:
            row = self._db.execute(
                "select stamp, etag, content_type, metadata from object where bucket = ? and key = ?", (bucket, key)
            ).fetchone()
        if row is None or row[0] != _stamp(stat):  # not ours, or replaced in between
            seen, row = row, (_stamp(stat), md5(handle), "binary/octet-stream", "{}")
            with self._lock:  # unless the one who replaced it has noted it meanwhile, who knows more
                if seen is None:
                    self._db.execute("insert or ignore into object values (?, ?, ?, ?, ?, ?)", (bucket, key, *row))
                else:
                    self._db.execute(
                        "update object set stamp = ?, etag = ?, content_type = ?, metadata = ?"
                        " where bucket = ? and key = ? and stamp = ?",
                        (*row, bucket, key, seen[0]),
                    )
        return Info(key, stat.st_size, stat.st_mtime, row[1], row[2], json.loads(row[3]))

    def close(self) -> None:
        """Close the database."""
        with self._lock:
            self._db.close()


def split(uri: str) -> tuple[str, str]:
    """Bucket and key of `s3://BUCKET/KEY`."""
    match = _URI.fullmatch(uri)
    if not match:
        raise ServiceError("ValidationException", f"{uri!r} is not an S3 URI: expected s3://BUCKET/KEY")
    return match[1], match[2]


def link(source: Path, destination: Path) -> None:
    """A second name for a file, or a copy where the file system has no hard links."""
    try:
        destination.hardlink_to(source)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP):
            raise
        shutil.copyfile(source, destination)


def copy(source: Path, destination: Path) -> None:
    """A file of its own with the same content, writable."""
    shutil.copyfile(source, destination)


def place(files: list[tuple[str, Path]], folder: Path, how: Callable[[Path, Path], None] = link) -> None:
    """Put `under`'s files into a job's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    made = {folder}
    for name, source in files:
        destination = folder / name
        if destination.parent not in made:
            destination.parent.mkdir(parents=True, exist_ok=True)
            made.add(destination.parent)
        destination.unlink(missing_ok=True)
        how(source, destination)


def files(folder: Path, within: Path) -> Iterator[tuple[str, Path]]:
    """Every file below `folder`: (path below it, file).

    Symbolic links are followed as far as `within`; sockets and pipes are left out.

    Raises:
        ServiceError: AccessDenied for a link that leads further, or nowhere.
    """
    for directory, folders, names in os.walk(folder, followlinks=False):
        folders.sort()
        for name in sorted(names):
            path = Path(directory, name)
            real = path.resolve()
            if path.is_symlink() and not (real.is_file() and real.is_relative_to(within.resolve())):
                raise ServiceError("AccessDenied", f"The output {path.relative_to(folder)} is a link out of the job")
            if real.is_file():
                yield path.relative_to(folder).as_posix(), path


def md5(handle: int) -> str:
    """S3's ETag of an object that was put in one piece; reads what is open, which another may replace by now."""
    with os.fdopen(os.dup(handle), "rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    os.lseek(handle, 0, os.SEEK_SET)  # the copy shares its position
    return digest


def _stamp(stat: os.stat_result) -> str:
    return f"{stat.st_ino}-{stat.st_size}-{stat.st_mtime_ns}"
