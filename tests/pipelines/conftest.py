"""A dataset to stage, and no more: nothing here looks into its photos."""

from pathlib import Path

import pytest


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for name in ("cat/1.jpg", "cat/2.jpg", "dog/1.jpg"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return tmp_path / "photos"
