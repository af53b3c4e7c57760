import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import embed
import networks
import photos
import shards
from contract import SIDES

MakePhoto = Callable[..., bytes]
SPEC = photos.Preprocessing(32, 32)


def side(folder: Path, contents: list[tuple[str, bytes]]) -> Path:
    with shards.Writer(folder, ["cat", "dog"], 10_000) as writer:
        for name, data in contents:
            writer.add(name, data)
    return folder


@pytest.fixture(scope="module")
def names_and_photos(make_photo: MakePhoto) -> list[tuple[str, bytes]]:
    return [(f"{'cat' if number % 2 else 'dog'}/{number:03}.jpg", make_photo(number)) for number in range(100)]


@pytest.fixture
def backbone() -> tuple[nn.Module, int]:
    return networks.create("resnet18", 32)


class Counted(nn.Module):
    """A network that counts the photos it is given."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.photos = network, 0

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        self.photos += len(batch)
        return self.network(batch)  # type: ignore[no-any-return]


def read(folder: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Features by photo."""
    names = json.loads((folder / "photos.json").read_text())
    features = np.load(folder / "features.npy", allow_pickle=False)
    assert (features.dtype, len(features)) == (np.float32, len(names))
    return dict(zip(names, features, strict=True))


def test_each_photo_is_decoded_once_and_forwarded_once(
    names_and_photos: list[tuple[str, bytes]], backbone: tuple[nn.Module, int], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    decoded: list[bytes] = []
    decode = photos.decode
    monkeypatch.setattr(photos, "decode", lambda data, limit: (decoded.append(data), decode(data, limit))[1])
    monkeypatch.setenv("SM_NUM_CPUS", "1")
    network = Counted(backbone[0])
    counters = embed.embed(network, 512, side(tmp_path / "in", names_and_photos), tmp_path / "out", SPEC, 10**8)
    assert counters == {"decodes": 100, "forwards": 100, "skipped": 0}
    assert network.photos == 100
    assert sorted(decoded) == sorted(data for _, data in names_and_photos)
    labels = np.load(tmp_path / "out" / "labels.npy", allow_pickle=False)
    assert labels.dtype == np.int64
    assert labels.tolist() == [int(name.startswith("dog")) for name, _ in names_and_photos]


def test_a_feature_is_a_function_of_the_photo_and_not_of_its_neighbours(
    names_and_photos: list[tuple[str, bytes]], backbone: tuple[nn.Module, int], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("SM_NUM_CPUS", "1")
    for name, contents in (
        ("all", names_and_photos), ("again", names_and_photos), ("backwards", names_and_photos[::-1]),
        ("some", names_and_photos[:7]),
    ):  # fmt: skip
        embed.embed(backbone[0], 512, side(tmp_path / f"{name}-in", contents), tmp_path / name, SPEC, 10**8)
    everything = read(tmp_path / "all")
    assert (tmp_path / "all" / "features.npy").read_bytes() == (tmp_path / "again" / "features.npy").read_bytes()
    for other, count in (("backwards", 100), ("some", 7)):
        features = read(tmp_path / other)
        assert len(features) == count
        for name, values in features.items():  # another place in a batch may sum in another order, no more
            np.testing.assert_allclose(values, everything[name], rtol=1e-4, atol=1e-4)
    assert not np.allclose(everything["dog/000.jpg"], everything["cat/001.jpg"], rtol=1e-2)


def test_an_unreadable_photo_is_skipped_and_the_others_keep_their_features(
    names_and_photos: list[tuple[str, bytes]], backbone: tuple[nn.Module, int], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("SM_NUM_CPUS", "1")
    good = names_and_photos[:40]
    damaged = [*good[:3], ("cat/text.jpg", b"text"), *good[3:], ("dog/zzz.jpg", b"")]
    embed.embed(backbone[0], 512, side(tmp_path / "good-in", good), tmp_path / "good", SPEC, 10**8)
    counters = embed.embed(backbone[0], 512, side(tmp_path / "bad-in", damaged), tmp_path / "bad", SPEC, 10**8)
    assert counters == {"decodes": 40, "forwards": 40, "skipped": 2}
    assert "warning: cat/text.jpg cannot be read and is skipped: not a JPEG" in capsys.readouterr().out
    expected, features = read(tmp_path / "good"), read(tmp_path / "bad")
    assert list(features) == list(expected)
    for name, values in features.items():
        np.testing.assert_allclose(values, expected[name], rtol=1e-4, atol=1e-4)


class TestScript:
    """As a job."""

    @pytest.fixture
    def sides(self, names_and_photos: list[tuple[str, bytes]], tmp_path: Path) -> dict[str, Path]:
        parts = {"train": names_and_photos[:70], "valid": names_and_photos[70:90], "test": names_and_photos[90:]}
        (tmp_path / "weights").mkdir()
        (tmp_path / "weights" / "random.json").write_text('{"init": "random", "seed": 5}')
        return {name: side(tmp_path / name, contents) for name, contents in parts.items()}

    @pytest.fixture
    def go(self, run: Callable[..., Any], sides: dict[str, Path], tmp_path: Path) -> Callable[..., Any]:
        def go(*options: object, name: str = "features", **env: str) -> Any:
            paths = ("--train", sides["train"], "--valid", sides["valid"], "--weights", tmp_path / "weights")
            size = ("--image-size", 32, "--resize-size", 32)
            return run("embed.py", *paths, *size, "--output", tmp_path / name, *options, env=env)

        return go

    def test_workers_change_nothing(self, go: Callable[..., Any], sides: dict[str, Path], tmp_path: Path) -> None:
        alone, together = (go("--test", sides["test"], name=n, SM_NUM_CPUS=n) for n in ("1", "3"))
        assert (alone.status, together.status) == (0, 0)
        for name in SIDES:
            for file in ("features.npy", "labels.npy", "photos.json"):
                assert (tmp_path / "1" / name / file).read_bytes() == (tmp_path / "3" / name / file).read_bytes()
        assert (tmp_path / "1" / "features.json").read_text() == (tmp_path / "3" / "features.json").read_text()
        assert json.loads((tmp_path / "1" / "features.json").read_text()) == {
            "backbone": "resnet18",
            "feature_dim": 512,
            "classes": ["cat", "dog"],
            "preprocessing": SPEC.to_json() | {"mean": list(SPEC.mean), "std": list(SPEC.std)},
            "weights": {"kind": "random", "name": "random.json", "seed": 5},
            "counters": {"decodes": 100, "forwards": 100, "skipped": 0},
        }
        assert "WARNING: the resnet18 backbone starts from RANDOM weights" in alone.log

    def test_the_test_side_is_left_alone_unless_asked_for(self, go: Callable[..., Any], tmp_path: Path) -> None:
        assert go().status == 0
        assert sorted(path.name for path in (tmp_path / "features").iterdir()) == ["features.json", "train", "valid"]

    def test_sides_of_different_classes(self, go: Callable[..., Any], sides: dict[str, Path]) -> None:
        (sides["valid"] / "classes.json").write_text('["cat", "dog", "emu"]')
        self.fails(go(), "--valid", "has other classes than --train")

    def test_an_unknown_backbone(self, go: Callable[..., Any]) -> None:
        self.fails(go("--backbone", "resnet81"), "backbone 'resnet81' is not a torchvision", "did you mean resnet18")

    def test_a_crop_that_does_not_fit(self, go: Callable[..., Any]) -> None:
        self.fails(go("--image-size", 64), "image_size = 64: expected 1 to resize_size (32)")

    def test_a_side_of_unreadable_photos(self, go: Callable[..., Any], sides: dict[str, Path]) -> None:
        self.fails(go("--max-pixels", 10), "none of the 70 photos in", "can be read")

    def test_weights_that_are_not_finite(self, go: Callable[..., Any], tmp_path: Path) -> None:
        state = networks.create("resnet18", 32)[0].state_dict()
        state["conv1.weight"][0, 0, 0, 0] = float("nan")
        shutil.rmtree(tmp_path / "weights")
        (tmp_path / "weights").mkdir()
        torch.save(state, tmp_path / "weights" / "broken.pth")
        self.fails(go(), "the backbone gives features that are not finite")

    def fails(self, job: Any, *parts: str) -> None:
        assert job.status == 1
        assert job.error.startswith("error: ")
        assert job.error.count("\n") == 1
        assert job.reason == job.error
        for part in parts:
            assert part in job.error
