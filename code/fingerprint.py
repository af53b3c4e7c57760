"""What identifies code and data: hashes of their content, in no way of their time or place. Standard library only."""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

DIGITS = 16
_SKIPPED = {"__pycache__", ".mypy_cache", ".ruff_cache", ".pytest_cache", ".ipynb_checkpoints"}


def files(folder: Path) -> dict[str, bytes]:
    """Content by relative path of all files below `folder` but caches and hidden ones, sorted."""
    paths = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    kept = [path for path in paths if not any(part in _SKIPPED or part.startswith(".") for part in path.parts)]
    return {path.as_posix(): (folder / path).read_bytes() for path in kept}


def of_files(contents: Mapping[str, bytes]) -> str:
    """Of names and contents, 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for name, content in contents.items():
        digest.update(f"{name}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()[:DIGITS]


def of_folder(folder: Path) -> str:
    """The hash the pipeline's bundle of this folder has."""
    return of_files(files(folder))


def of_photos(photos: Iterable[tuple[str, str, str]]) -> str:
    """Of a split dataset: (side, name, SHA-256) of every photo, in whatever order; 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for side, name, sha256 in sorted(photos):
        digest.update(f"{side}\0{name}\0{sha256}\n".encode())
    return digest.hexdigest()[:DIGITS]
