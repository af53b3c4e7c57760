"""The folder `code/` as a content-addressed bundle: the same bytes get the same URI, so that SageMaker's cache hits.

Training jobs get `sourcedir.tar.gz`, which their toolkit unpacks; processing jobs get the same files loose, under
`src/`.
"""

import gzip
import hashlib
import io
import tarfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pipelines.contract import CODE

_SKIPPED = {"__pycache__", ".mypy_cache", ".ruff_cache", ".pytest_cache", ".ipynb_checkpoints"}


@dataclass(frozen=True)
class Bundle:
    """File contents by their path relative to `code/`, sorted."""

    files: dict[str, bytes]

    @classmethod
    def of(cls, folder: Path = CODE) -> "Bundle":
        """All files below `folder` but caches and hidden ones."""
        paths = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
        kept = [path for path in paths if not any(part in _SKIPPED or part.startswith(".") for part in path.parts)]
        return cls({path.as_posix(): (folder / path).read_bytes() for path in kept})

    @cached_property
    def hash(self) -> str:
        """Of names and contents, 16 hexadecimal digits."""
        digest = hashlib.sha256()
        for name, content in self.files.items():
            digest.update(f"{name}\0{len(content)}\0".encode())
            digest.update(content)
        return digest.hexdigest()[:16]

    def archive(self) -> bytes:
        """The files as a tar.gz: no times, no owners, one mode."""
        buffer = io.BytesIO()
        with (
            gzip.GzipFile(fileobj=buffer, mode="wb", mtime=0, filename="") as zipped,
            tarfile.open(fileobj=zipped, mode="w", format=tarfile.PAX_FORMAT) as tar,
        ):
            for name, content in self.files.items():
                info = tarfile.TarInfo(name)
                info.size, info.mode = len(content), 0o644
                tar.addfile(info, io.BytesIO(content))
        return buffer.getvalue()

    def objects(self) -> dict[str, bytes]:
        """Content by key, relative to the bundle's URI."""
        return {"sourcedir.tar.gz": self.archive(), **{f"src/{name}": data for name, data in self.files.items()}}
