"""The folder `code/` as a content-addressed bundle: the same bytes get the same URI, so that SageMaker's cache hits.

Training jobs get `sourcedir.tar.gz`, which their toolkit unpacks; processing jobs get the same files loose, under
`src/`.
"""

import gzip
import io
import tarfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pipelines.contract import CODE, fingerprint


@dataclass(frozen=True)
class Bundle:
    """File contents by their path relative to `code/`, sorted."""

    files: dict[str, bytes]

    @classmethod
    def of(cls, folder: Path = CODE) -> "Bundle":
        """All files below `folder` but caches and hidden ones."""
        return cls(fingerprint.files(folder))

    @cached_property
    def hash(self) -> str:
        """Of names and contents, 16 hexadecimal digits; jobs find the same in their copy."""
        return str(fingerprint.of_files(self.files))

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
