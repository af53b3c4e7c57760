import hashlib
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import shards
import split
from contract import SIDES
from failures import UserError

MakePhoto = Callable[..., bytes]


def write(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


@pytest.fixture
def dataset(tmp_path: Path, make_photo: MakePhoto) -> Path:
    """Forty photos of each of two classes: enough for every side."""
    names = [(label, number) for label in ("cat", "dog") for number in range(40)]
    return write(tmp_path / "data", {f"{c}/{n}.jpg": make_photo(100 * (c == "cat") + n) for c, n in names})


@pytest.fixture
def split_it(tmp_path: Path, run: Callable[..., Any]) -> Callable[..., Any]:
    def go(dataset: Path, *options: object, name: str = "out") -> Any:
        sides = [option for side in SIDES for option in (f"--{side}", tmp_path / name / side)]
        return run("split.py", "--input", dataset, *sides, "--report", tmp_path / name / "report", *options)

    return go


def report(tmp_path: Path, name: str = "out") -> Any:
    return json.loads((tmp_path / name / "report" / "split.json").read_text())


def members(tmp_path: Path, name: str = "out") -> dict[str, list[str]]:
    return {side: [photo.name for photo in shards.index(tmp_path / name / side)] for side in SIDES}


def test_every_photo_lands_on_the_side_its_bytes_say(dataset: Path, tmp_path: Path, split_it: Any) -> None:
    job = split_it(dataset)
    assert job.status == 0, job.error
    found = 0
    for side in SIDES:
        assert shards.classes(tmp_path / "out" / side) == ["cat", "dog"]
        for photo in shards.index(tmp_path / "out" / side):
            data = (dataset / photo.name).read_bytes()
            assert photo.read() == data
            assert split.side_of(hashlib.sha256(data).hexdigest(), 0.1, 0.1) == side
            found += 1
    assert found == 80
    summary = report(tmp_path)
    assert summary["classes"] == ["cat", "dog"]
    assert sum(sum(counts.values()) for counts in summary["counts"].values()) == 80
    assert summary["ready_made"] is False


def test_the_same_photos_give_the_same_bytes(dataset: Path, tmp_path: Path, split_it: Any) -> None:
    assert split_it(dataset).status == 0
    for path in dataset.rglob("*.jpg"):
        path.touch()
    assert split_it(dataset, name="again").status == 0
    for side in SIDES:
        for path in sorted((tmp_path / "out" / side).iterdir()):
            assert path.read_bytes() == (tmp_path / "again" / side / path.name).read_bytes()
    with tarfile.open(next((tmp_path / "out" / "train").glob("*.tar"))) as tar:
        assert {(m.mtime, m.uid, m.gid, m.mode, m.uname) for m in tar} == {(0, 0, 0, 0o644, "")}


def test_adding_photos_moves_none(dataset: Path, tmp_path: Path, split_it: Any, make_photo: MakePhoto) -> None:
    assert split_it(dataset).status == 0
    write(dataset, {f"dog/new/{number}.png": make_photo(1000 + number, kind="PNG") for number in range(30)})
    assert split_it(dataset, name="more").status == 0
    before, after = members(tmp_path), members(tmp_path, "more")
    for side in SIDES:
        assert set(before[side]) <= set(after[side])
    assert sum(map(len, after.values())) == 110


@given(st.binary(), st.floats(0.01, 0.45), st.floats(0.01, 0.45), st.floats(1, 1.2))
def test_larger_fractions_only_take_from_train(data: bytes, valid: float, test: float, growth: float) -> None:
    sha = hashlib.sha256(data).hexdigest()
    side = split.side_of(sha, valid, test)
    assert side in SIDES
    assert split.side_of(sha, valid * growth, test) in {side, "valid"}
    if side == "test":
        assert split.side_of(sha, valid, test * growth) == "test"


def test_the_fractions_are_met() -> None:
    sides = [split.side_of(hashlib.sha256(str(n).encode()).hexdigest(), 0.2, 0.1) for n in range(20_000)]
    assert sides.count("valid") / 20_000 == pytest.approx(0.2, abs=0.01)
    assert sides.count("test") / 20_000 == pytest.approx(0.1, abs=0.01)


def test_identical_photos_share_a_side_and_those_under_two_labels_are_left_out(
    dataset: Path, tmp_path: Path, split_it: Any, make_photo: MakePhoto
) -> None:
    twin, torn = make_photo(500), make_photo(501)
    write(dataset, {"cat/twin.jpg": twin, "cat/deep/twin2.jpg": twin, "cat/torn.jpg": torn, "dog/torn.jpg": torn})
    job = split_it(dataset)
    assert "warning: 1 photos stand under two labels" in job.log
    sides = members(tmp_path)
    assert [("cat/twin.jpg" in names) == ("cat/deep/twin2.jpg" in names) for names in sides.values()] == [True] * 3
    assert not any("torn" in name for names in sides.values() for name in names)
    assert sum(map(len, sides.values())) == 82
    summary = report(tmp_path)
    assert summary["conflicts"] == [
        {"sha256": hashlib.sha256(torn).hexdigest(), "paths": ["cat/torn.jpg", "dog/torn.jpg"]}
    ]
    assert [group["paths"] for group in summary["duplicates"]] == [["cat/deep/twin2.jpg", "cat/twin.jpg"]]


def test_unreadable_photos_are_set_aside_and_listed(
    dataset: Path, tmp_path: Path, split_it: Any, make_photo: MakePhoto
) -> None:
    large = make_photo(600, size=(400, 300))
    write(dataset, {"cat/cut.jpg": large[: len(large) // 2], "dog/text.jpg": b"just text", "dog/empty.png": b""})
    job = split_it(dataset)
    assert job.status == 0, job.error
    assert {each["path"]: each["reason"] for each in report(tmp_path)["unreadable"]} == {
        "cat/cut.jpg": report(tmp_path)["unreadable"][0]["reason"],
        "dog/empty.png": "the file is empty",
        "dog/text.jpg": "not a JPEG, PNG or WebP image",
    }
    assert "truncated" in report(tmp_path)["unreadable"][0]["reason"]
    assert "3 unreadable photos are set aside" in job.log
    assert sum(map(len, members(tmp_path).values())) == 80


def test_too_many_unreadable_photos_are_an_error(dataset: Path, split_it: Any) -> None:
    write(dataset, {f"cat/text{number}.jpg": b"text" for number in range(7)})
    job = split_it(dataset)
    assert job.status == 1
    assert job.error.startswith(
        "error: 7 of 87 photos are unreadable, more than --max-unreadable 0.05 (cat/text0.jpg: "
    )
    assert job.error.count("\n") == 1
    assert job.reason == job.error
    assert split_it(dataset, "--max-unreadable", "0.1", name="lenient").status == 0


def test_a_photo_with_too_many_pixels_is_unreadable(dataset: Path, tmp_path: Path, split_it: Any) -> None:
    write(dataset, {"cat/big.jpg": next((dataset / "cat").iterdir()).read_bytes()})
    job = split_it(dataset, "--max-pixels", "1199", "--max-unreadable", "1")
    assert "the dataset holds no photo that can be used" in job.error


def test_other_files_are_ignored_and_counted(
    dataset: Path, tmp_path: Path, split_it: Any, make_photo: MakePhoto
) -> None:
    write(dataset, {"cat/notes.txt": b"x", "cat/.hidden.jpg": b"x", "README.md": b"x", "stray.jpg": make_photo(1)})
    write(dataset, {".git/config": b"x", ".git/cat.jpg": b"x"})
    (dataset / "empty").mkdir()
    job = split_it(dataset)
    assert job.status == 0, job.error
    assert report(tmp_path)["ignored"] == {".jpg": 1, ".md": 1, ".txt": 1, "hidden": 1}
    assert "photos outside any class folder have no label and are ignored, e.g. stray.jpg" in job.log
    assert report(tmp_path)["classes"] == ["cat", "dog"]


def test_names_with_spaces_accents_and_links_are_kept(
    dataset: Path, tmp_path: Path, split_it: Any, make_photo: MakePhoto
) -> None:
    write(dataset, {"cat/größe 1/猫 (2).JPEG": make_photo(700)})
    (dataset / "cat" / "loop").symlink_to(dataset / "cat")
    (dataset / "lynx").symlink_to(write(tmp_path / "elsewhere", {f"{n}.jpg": make_photo(800 + n) for n in range(40)}))
    job = split_it(dataset, "--valid-fraction", 0.3, "--test-fraction", 0.3)  # of 40 random photos, some on every side
    assert job.status == 0, job.error
    names = [name for side in members(tmp_path).values() for name in side]
    assert "cat/größe 1/猫 (2).JPEG" in names
    assert len(names) == 121
    assert report(tmp_path)["classes"] == ["cat", "dog", "lynx"]


def test_a_name_that_is_not_utf8_is_unreadable(dataset: Path, tmp_path: Path, split_it: Any) -> None:
    with open(bytes(dataset / "cat") + b"/\xff.jpg", "wb") as file:
        file.write(b"x")
    job = split_it(dataset)
    assert job.status == 0, job.error
    assert report(tmp_path)["unreadable"] == [{"path": "cat/\\udcff.jpg", "reason": "the file name is not UTF-8"}]


def ready_made(root: Path, make_photo: MakePhoto, names: tuple[str, ...] = ("train", "val", "test")) -> Path:
    files = {
        f"{side}/{label}/{number}.jpg": make_photo(1000 * s + 100 * (label == "cat") + number)
        for s, side in enumerate(names)
        for label in ("cat", "dog")
        for number in range(3)
    }
    return write(root, files)


@pytest.mark.parametrize("valid", ["valid", "val", "validation", "Valid"])
def test_ready_made_sides_are_kept(tmp_path: Path, split_it: Any, make_photo: MakePhoto, valid: str) -> None:
    root = ready_made(tmp_path / "data", make_photo, ("train", valid, "test"))
    job = split_it(root)
    assert job.status == 0, job.error
    assert report(tmp_path)["ready_made"] is True
    assert members(tmp_path)["valid"] == [f"{label}/{number}.jpg" for label in ("cat", "dog") for number in range(3)]
    first = shards.index(tmp_path / "out" / "valid")[0]
    assert first.read() == (root / valid / "cat" / "0.jpg").read_bytes()


def test_a_leak_between_ready_made_sides_is_warned_of(tmp_path: Path, split_it: Any, make_photo: MakePhoto) -> None:
    root = ready_made(tmp_path / "data", make_photo)
    write(root, {"test/cat/leak.jpg": (root / "train/cat/0.jpg").read_bytes()})
    job = split_it(root)
    assert "warning: 1 photos stand on two sides with the same bytes" in job.log
    assert [leak["paths"] for leak in report(tmp_path)["leaks"]] == [["train/cat/0.jpg", "test/cat/leak.jpg"]]


def test_a_class_called_train_is_no_side(dataset: Path, tmp_path: Path, split_it: Any) -> None:
    (dataset / "dog").rename(dataset / "train")
    assert split_it(dataset).status == 0
    assert report(tmp_path)["classes"] == ["cat", "train"]


class TestErrors:
    """Each is one line that names what is wrong and the way out."""

    @pytest.fixture(autouse=True)
    def one_line(self, fails: Callable[..., None]) -> None:
        self.fails = fails

    def test_empty_dataset(self, tmp_path: Path, split_it: Any) -> None:
        (tmp_path / "data").mkdir()
        self.fails(split_it(tmp_path / "data"), "the dataset holds nothing: expected class folders")

    def test_no_dataset(self, tmp_path: Path, split_it: Any) -> None:
        self.fails(split_it(tmp_path / "data"), "data does not exist: expected a folder of class folders")

    def test_a_file_as_dataset(self, tmp_path: Path, split_it: Any) -> None:
        write(tmp_path, {"data": b"x"})
        self.fails(split_it(tmp_path / "data"), "data is a file: expected a folder of class folders")

    def test_a_file_where_class_folders_are_expected(self, tmp_path: Path, split_it: Any) -> None:
        write(tmp_path / "data", {"photos.zip": b"x"})
        self.fails(split_it(tmp_path / "data"), "only files such as photos.zip: expected class folders")

    def test_one_class(self, dataset: Path, tmp_path: Path, split_it: Any) -> None:
        (dataset / "dog").rename(tmp_path / "dog")
        self.fails(split_it(dataset), "the dataset has one class only, cat")

    def test_a_class_too_small(self, dataset: Path, split_it: Any, make_photo: MakePhoto) -> None:
        write(dataset, {"emu/1.jpg": make_photo(2000)})
        self.fails(split_it(dataset), "class emu has 1 usable photos, and none of them on the", "add photos of it")

    def test_a_class_of_other_files(self, dataset: Path, split_it: Any) -> None:
        write(dataset, {"emu/1.gif": b"GIF89a"})
        self.fails(split_it(dataset), "class emu has 0 usable photos")

    def test_nothing_but_other_files(self, tmp_path: Path, split_it: Any) -> None:
        write(tmp_path / "data", {"a/1.gif": b"x", "b/1.gif": b"x"})
        self.fails(split_it(tmp_path / "data"), "no photo that can be used in 2 class folders")

    def test_a_side_missing(self, tmp_path: Path, split_it: Any, make_photo: MakePhoto) -> None:
        root = ready_made(tmp_path / "data", make_photo, ("train", "test"))
        self.fails(split_it(root), "looks ready-made (it holds test, train), but valid is missing")

    def test_only_one_side(self, tmp_path: Path, split_it: Any, make_photo: MakePhoto) -> None:
        self.fails(split_it(ready_made(tmp_path / "data", make_photo, ("train",))), "but valid is missing")

    def test_a_folder_beside_sides(self, tmp_path: Path, split_it: Any, make_photo: MakePhoto) -> None:
        root = ready_made(tmp_path / "data", make_photo, ("train", "valid", "test", "extra"))
        self.fails(split_it(root), "but extra stands beside them")

    def test_two_names_of_a_side(self, tmp_path: Path, split_it: Any, make_photo: MakePhoto) -> None:
        root = ready_made(tmp_path / "data", make_photo, ("train", "val", "valid", "test"))
        self.fails(split_it(root), "but val and valid are the same side")

    def test_a_class_missing_on_a_ready_made_side(self, tmp_path: Path, split_it: Any, make_photo: MakePhoto) -> None:
        root = ready_made(tmp_path / "data", make_photo)
        write(root, {"train/emu/1.jpg": make_photo(9000)})
        self.fails(split_it(root), "class emu has 1 usable photos, and none of them on the valid side", "valid folder")

    def test_output_in_use(self, dataset: Path, split_it: Any) -> None:
        assert split_it(dataset).status == 0
        self.fails(split_it(dataset), "is not empty", "expected an empty folder")

    @pytest.mark.parametrize("fraction", ["0", "1", "-0.1", "0.95"])
    def test_fractions(self, dataset: Path, split_it: Any, fraction: str) -> None:
        self.fails(split_it(dataset, "--valid-fraction", fraction), f"--valid-fraction {float(fraction):g}: expected")

    def test_an_option_of_another_type(self, dataset: Path, split_it: Any) -> None:
        self.fails(split_it(dataset, "--max-pixels", "many"), "--max-pixels", "many")


def test_a_bug_of_ours_keeps_its_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import failures

    def main() -> None:
        raise KeyError("bug")

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SM_OUTPUT_DIR", str(tmp_path))
        with pytest.raises(SystemExit) as ended:
            failures.run(main, failures.TRAINING)
    assert ended.value.code == 1
    assert "Traceback" in capsys.readouterr().err
    assert (tmp_path / "failure").read_text().startswith("KeyError: 'bug'\n\nTraceback")


def test_large_sides_become_several_shards(tmp_path: Path) -> None:
    with shards.Writer(tmp_path / "side", ["a", "b"], shard_bytes=100) as writer:
        for number in range(5):
            writer.add(f"a/{number}.jpg", bytes([number]) * 60)
        writer.add("b/large.jpg", b"x" * 500)
    assert len(list((tmp_path / "side").glob("shard-*.tar"))) == 6
    photos = shards.index(tmp_path / "side")
    assert [photo.name for photo in photos] == [f"a/{n}.jpg" for n in range(5)] + ["b/large.jpg"]
    assert [photo.read()[0] for photo in photos[:5]] == list(range(5))


def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    with shards.Writer(tmp_path / "side", ["a", "b"]) as writer:
        writer.add("a/1.jpg", b"x")
    path = tmp_path / "side" / "shard-00000.tar"
    path.write_bytes(b"rubbish" * 200)
    with pytest.raises(UserError, match=r"shard-00000\.tar cannot be read"):
        shards.index(tmp_path / "side")


def test_a_dead_worker_is_a_clear_error() -> None:
    import os

    import workers

    with pytest.raises(UserError, match="a worker process was killed"):
        list(workers.ordered_map(os._exit, [9], 2))
    assert list(workers.ordered_map(abs, range(-50, 0), 2)) == list(range(50, 0, -1))
