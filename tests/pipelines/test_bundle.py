"""The bundle: the same bytes give the same name, wherever and whenever they are packed."""

import io
import os
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.bundle import Bundle
from pipelines.contract import CODE

FILES = {"train.py": b"print(1)\n", "requirements.txt": b"", "vendor/wheel.whl": bytes(range(256))}


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def test_the_same_bytes_are_the_same_bundle_whatever_their_times_modes_and_order(tmp_path: Path) -> None:
    one = write(tmp_path / "one", FILES)
    other = write(tmp_path / "other", dict(reversed(FILES.items())))
    os.utime(other / "train.py", (0, 0))
    (other / "train.py").chmod(0o755)
    assert Bundle.of(one).hash == Bundle.of(other).hash
    assert Bundle.of(one).objects() == Bundle.of(other).objects()


@pytest.mark.parametrize(
    "change", [{"train.py": b"print(2)\n"}, {"new.py": b""}, {"vendor/wheel.whl": bytes(range(255))}]
)
def test_other_bytes_or_names_are_another(tmp_path: Path, change: dict[str, bytes]) -> None:
    folder = write(tmp_path, FILES)
    before = Bundle.of(folder).hash
    assert Bundle.of(write(folder, change)).hash != before


@given(
    st.dictionaries(st.sampled_from("abcd"), st.binary(max_size=3)),
    st.dictionaries(st.sampled_from("abcd"), st.binary(max_size=3)),
)
def test_two_bundles_share_a_hash_only_if_they_are_equal(one: dict[str, bytes], other: dict[str, bytes]) -> None:
    one, other = dict(sorted(one.items())), dict(sorted(other.items()))
    assert (Bundle(one).hash == Bundle(other).hash) == (one == other)


def test_caches_and_hidden_files_stay_out(tmp_path: Path) -> None:
    folder = write(tmp_path, FILES)
    before = Bundle.of(folder)
    unwanted = ("__pycache__/train.cpython-311.pyc", ".DS_Store", "vendor/.hidden/x", ".mypy_cache/x", "a/.ipynb")
    assert Bundle.of(write(folder, dict.fromkeys(unwanted, b"x"))) == before
    assert list(before.files) == sorted(FILES)


def test_the_archive_holds_the_files_and_nothing_of_whoever_packed_them(tmp_path: Path) -> None:
    archive = Bundle.of(write(tmp_path, FILES)).archive()
    assert archive[4:8] == bytes(4)  # gzip's time
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        members = tar.getmembers()
        contents = {member.name: tar.extractfile(member).read() for member in members}  # type: ignore[union-attr]
    assert contents == FILES
    assert {(member.mtime, member.uid, member.gid, member.uname, member.mode) for member in members} == {
        (0, 0, 0, "", 0o644)
    }


def test_jobs_get_the_archive_and_the_loose_files() -> None:
    objects = Bundle.of().objects()
    loose = {name.removeprefix("src/"): data for name, data in objects.items() if name.startswith("src/")}
    assert set(objects) - {f"src/{name}" for name in loose} == {"sourcedir.tar.gz"}
    assert loose["train.py"] == (CODE / "train.py").read_bytes()
    assert {"requirements.txt", "contract.py", "inference.py"} <= set(loose)
