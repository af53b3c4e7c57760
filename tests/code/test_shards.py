import json
import tarfile
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import shards
from failures import UserError

PART = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=120).filter(
    lambda part: part not in (".", "..")
)
NAMES = st.tuples(st.sampled_from(["cat", "größe 2"]), PART, PART).map("/".join)


def write(folder: Path, photos: dict[str, bytes], shard_bytes: int = 1000) -> Path:
    with shards.Writer(folder, ["cat", "größe 2"], shard_bytes) as writer:
        for name in sorted(photos):
            writer.add(name, photos[name])
    return folder


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(NAMES, st.binary(max_size=2000), min_size=1, max_size=12))
def test_names_and_bytes_come_back_as_they_went_in(photos: dict[str, bytes]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        first, second = (write(Path(folder, name), photos) for name in ("first", "second"))
        index = shards.index(first)
        assert {photo.name: photo.read() for photo in index} == photos
        assert [photo.name for photo in index] == sorted(photos)
        assert all(photo.label == photo.name.split("/")[0] for photo in index)
        for path in sorted(first.iterdir()):
            assert path.read_bytes() == (second / path.name).read_bytes()


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_a_cut_shard_is_an_error(data: st.DataObject) -> None:
    photos = {f"cat/{number}.jpg": bytes([number]) * (700 * number) for number in range(4)}
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder, "side"), photos, 10**6) / "shard-00000.tar"
        whole = path.read_bytes()
        end = len(whole.rstrip(b"\0")) // 512 * 512 + 512  # where the last photo's blocks end and the marker begins
        path.write_bytes(whole[: data.draw(st.integers(0, end))])
        with pytest.raises(UserError, match=r"shard-00000\.tar cannot be read"):
            shards.index(path.parent)


def test_a_damaged_header_in_the_middle_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "side", {f"cat/{n}.jpg": b"x" * 100 for n in range(4)}, 10**6) / "shard-00000.tar"
    damaged = bytearray(path.read_bytes())
    damaged[2 * 1024 + 150] ^= 1  # the checksum of the third photo's header
    path.write_bytes(damaged)
    with pytest.raises(UserError, match=r"shard-00000\.tar cannot be read: the header at byte 2048 is damaged"):
        shards.index(path.parent)


def test_a_photo_is_read_without_unpacking_what_tar_tools_can_unpack(tmp_path: Path) -> None:
    side = write(tmp_path / "side", {"cat/a.jpg": b"A" * 700, "cat/b.jpg": b"B" * 900})
    assert [path.name for path in sorted(side.glob("*.tar"))] == ["shard-00000.tar", "shard-00001.tar"]
    with tarfile.open(side / "shard-00001.tar") as tar:
        assert tar.getnames() == ["cat/b.jpg"]
        assert tar.extractfile("cat/b.jpg").read() == shards.index(side)[1].read() == b"B" * 900  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, "cannot be read"),
        ("[", "cannot be read"),
        ('{"cat": 1}', "is not a list of two or more class names"),
        ('["cat"]', "is not a list of two or more class names"),
        ("[1, 2]", "is not a list of two or more class names"),
    ],
)
def test_a_class_list_of_another_form_is_refused(tmp_path: Path, text: str | None, expected: str) -> None:
    if text is not None:
        (tmp_path / "classes.json").write_text(text)
    with pytest.raises(UserError, match=expected):
        shards.classes(tmp_path)


def test_a_folder_without_shards_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no shard-\*\.tar; expected a folder that Split wrote"):
        shards.index(tmp_path)


def test_a_photo_of_a_class_that_is_not_listed_is_refused(tmp_path: Path) -> None:
    side = write(tmp_path / "side", {"cat/a.jpg": b"x"})
    (side / "classes.json").write_text(json.dumps(["dog", "fox"]))
    with pytest.raises(UserError, match=r"holds cat/a\.jpg, whose class is not in classes\.json"):
        shards.index(side)


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    side = write(tmp_path / "side", {"cat/a.jpg": b"x"})
    with pytest.raises(UserError, match=r"is not empty \(it holds classes\.json\)"):
        shards.Writer(side, ["cat", "dog"])
