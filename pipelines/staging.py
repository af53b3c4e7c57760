"""What a definition points to, brought to S3 once: code, pretrained weights, photos. All of it content-addressed.

`plan` works out where everything lies; it reads local files, and asks nobody. `Plan.upload` brings what is missing.
"""

import hashlib
import json
import re
import socket
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.bundle import Bundle
from pipelines.contract import RANDOM_WEIGHTS_FILE
from pipelines.errors import UserError
from pipelines.settings import Settings

THREADS = 8  # uploads at the same time
_URI = re.compile(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(?:/(.*))?", re.DOTALL)
_TORCHVISION = re.compile(r"[A-Z][A-Z0-9_]*")
_LONG = 20.0  # seconds without an answer after which a download has failed

Tell = Callable[[str, int, int], None]
"""Called with what is going on, how many are done, and of how many."""


@dataclass(frozen=True)
class Source:
    """Where the content of one object comes from: bytes, a local file, or a function that gives a file."""

    content: bytes | Path | Callable[[], Path]
    size: int | None
    """Bytes; None where only fetching it would tell."""


@dataclass(frozen=True)
class Staged:
    """A prefix in S3, and the objects that belong below it."""

    what: str
    uri: str
    sources: Mapping[str, Source] = field(default_factory=dict)
    """By key relative to the prefix; empty for what is in S3 already."""

    def upload(self, s3: Any, tell: Tell) -> None:
        """Bring what is missing; objects that are there with the right size are left alone.

        Raises:
            UserError: weights that cannot be fetched.
        """
        if not self.sources:
            return
        bucket, prefix = split_uri(self.uri)
        there = _sizes(s3, bucket, f"{prefix}/")
        missing = [
            (f"{prefix}/{key}", source)
            for key, source in self.sources.items()
            if f"{prefix}/{key}" not in there or source.size not in (None, there[f"{prefix}/{key}"])
        ]
        if not missing:
            return
        tell(self.what, 0, len(missing))
        with ThreadPoolExecutor(THREADS) as pool:
            for done, _ in enumerate(pool.map(lambda item: _put(s3, bucket, *item), missing), 1):
                tell(self.what, done, len(missing))


@dataclass(frozen=True)
class Plan:
    """Settings with `data` and `weights` as URIs, and where everything lies."""

    settings: Settings
    code: Staged
    weights: Staged
    photos: Staged


def plan(settings: Settings, bundle: Bundle | None = None) -> Plan:
    """Where everything lies.

    Raises:
        UserError: no such folder or file, or nothing in it.
    """
    bundle = bundle or Bundle.of()
    sources = {name: Source(data, len(data)) for name, data in bundle.objects().items()}
    code = Staged("code", f"{settings.base_uri}/code/{bundle.hash}", sources)
    weights = locate_weights(settings, settings.weights)
    photos = locate_data(settings, settings.data)
    located = settings.model_copy(update={"data": photos.uri, "weights": weights.uri})
    return Plan(located, code, weights, photos)


def locate_data(settings: Settings, data: str) -> Staged:
    """The place of a dataset.

    Args:
        settings: for the bucket.
        data: an `s3://…` URI, a local folder, or empty for the place where photos are kept by default.

    Raises:
        UserError: not a folder, or one without files.
    """
    if not data:
        return Staged("photos", f"{settings.base_uri}/photos")
    if data.startswith("s3://"):
        split_uri(data)
        return Staged("photos", data)
    folder = Path(data).expanduser()
    if not folder.exists():
        raise UserError(
            f"--data {data}: no such folder; expected a folder of class folders, CLASS/photo.jpg, or s3://…"
        )
    if not folder.is_dir():
        raise UserError(f"--data {data} is a file: expected a folder of class folders, CLASS/photo.jpg, or s3://…")
    files = {path.relative_to(folder).as_posix(): path for path in _walk(folder, ())}
    if not files:
        raise UserError(f"--data {data} is empty: expected class folders with photos in them, CLASS/photo.jpg")
    bad = next((name for name in files if not name.isprintable() or not _is_utf8(name)), None)
    if bad is not None:
        raise UserError(f"--data {data} holds the file {bad!r}, which cannot be an S3 key; rename it")
    digest = hashlib.sha256()
    with ThreadPoolExecutor(THREADS) as pool:
        for name, content in zip(files, pool.map(_sha256, files.values()), strict=True):
            digest.update(f"{name}\0{content}\n".encode())
    uri = f"{settings.base_uri}/data/{digest.hexdigest()[:16]}"
    return Staged("photos", uri, {name: Source(path, path.stat().st_size) for name, path in files.items()})


def _walk(folder: Path, above: tuple[tuple[int, int], ...]) -> Iterator[Path]:
    """Files below `folder`, sorted; hidden ones left out, links followed but not in circles."""
    try:
        status = folder.stat()
        paths = sorted(folder.iterdir())
    except OSError as error:
        raise UserError(f"{folder} cannot be read: {error.strerror or error}") from None
    here = (status.st_dev, status.st_ino)
    if here in above:
        return
    for path in paths:
        if path.name.startswith("."):
            continue
        if path.is_dir():
            yield from _walk(path, (*above, here))
        elif path.is_file():
            yield path


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None


def locate_weights(settings: Settings, weights: str) -> Staged:
    """The place of one file of weights.

    Args:
        settings: for the bucket, the backbone and the seed.
        weights: a torchvision name, a local file, an `s3://…` object, or `random`.

    Raises:
        UserError: none of these.
    """
    base = f"{settings.base_uri}/weights"
    if weights.startswith("s3://"):
        split_uri(weights)
        return Staged("weights", weights)
    if weights == "random":
        content = json.dumps({"init": "random", "seed": settings.seed}).encode()
        sources = {RANDOM_WEIGHTS_FILE: Source(content, len(content))}
        return Staged("weights", f"{base}/random-{settings.seed}", sources)
    path = Path(weights).expanduser()
    if path.is_file():
        if path.suffix not in (".pth", ".pt"):
            raise UserError(f"--weights {weights}: expected a file of PyTorch weights, *.pth or *.pt")
        uri = f"{base}/{_sha256(path)[:16]}"
        name = re.sub(r"[^A-Za-z0-9_.-]", "_", path.name)
        return Staged("weights", uri, {name: Source(path, path.stat().st_size)})
    if not _TORCHVISION.fullmatch(weights):
        what = "is a folder" if path.is_dir() else "is no file here"
        raise UserError(
            f"--weights {weights} {what}: expected a torchvision name such as IMAGENET1K_V1, a file *.pth, "
            "an s3://… object, or random"
        )
    fetched = Source(lambda: _torchvision(settings.backbone, weights), None)
    return Staged("weights", f"{base}/{settings.backbone}-{weights}", {f"{settings.backbone}.pth": fetched})


def _torchvision(backbone: str, name: str) -> Path:
    """torchvision's file of pretrained weights, from its cache or the internet."""
    import torch
    import torchvision

    choices = torchvision.models.get_model_weights(backbone)
    if name not in choices.__members__:
        raise UserError(f"--weights {name}: torchvision has {', '.join(choices.__members__)} for {backbone}")
    url = choices[name].url
    cached: Path = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[1]
    prefix = re.search(r"-([0-9a-f]{8,})\.", cached.name)
    if cached.is_file() and (prefix is None or _sha256(cached).startswith(prefix[1])):
        return cached
    cached.parent.mkdir(parents=True, exist_ok=True)
    patience = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_LONG)
    try:
        torch.hub.download_url_to_file(url, str(cached), hash_prefix=prefix[1] if prefix else None, progress=False)
    except (OSError, RuntimeError) as error:  # no network, or a damaged download
        raise UserError(
            f"the weights {name} of {backbone} are not staged and cannot be fetched from {url} ({error}). Three ways "
            f"out: connect this machine to the internet; fetch the file elsewhere and give it with --weights FILE.pth; "
            "or start from random weights with --weights random (poor for real photos)"
        ) from None
    finally:
        socket.setdefaulttimeout(patience)
    return cached


def split_uri(uri: str) -> tuple[str, str]:
    """(bucket, key) of an `s3://…` URI.

    Raises:
        UserError: it is not one.
    """
    match = _URI.fullmatch(uri)
    if match is None:
        raise UserError(f"{uri} is not a URI of S3: expected s3://BUCKET/KEY, with a bucket of lower-case letters")
    return match[1], match[2] or ""


def _sizes(s3: Any, bucket: str, prefix: str) -> dict[str, int]:
    """Size in bytes of every object whose key begins so, by key."""
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    return {item["Key"]: item["Size"] for page in pages for item in page.get("Contents", [])}


def _put(s3: Any, bucket: str, key: str, source: Source) -> None:
    if isinstance(source.content, bytes):
        s3.put_object(Bucket=bucket, Key=key, Body=source.content)
        return
    path = source.content if isinstance(source.content, Path) else source.content()
    s3.upload_file(str(path), bucket, key)  # large files in parts
