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
import engines
import features
import fingerprint
import networks
import photos
import shards
from contract import SIDES
from failures import UserError

MakePhoto = Callable[..., bytes]
CODE = Path(embed.__file__).resolve().parent
SPEC = photos.Preprocessing(32, 32)
SPEC64 = photos.Preprocessing(64, 64)


def side(folder: Path, contents: list[tuple[str, bytes]]) -> Path:
    with shards.Writer(folder, ["cat", "dog"], 10_000) as writer:
        for name, data in contents:
            writer.add(name, data)
    return folder


@pytest.fixture(scope="module")
def names_and_photos(make_photo: MakePhoto) -> list[tuple[str, bytes]]:
    return [(f"{'cat' if number % 2 else 'dog'}/{number:03}.jpg", make_photo(number)) for number in range(100)]


@pytest.fixture(scope="module")
def backbone() -> nn.Module:
    return networks.create("resnet18", 32)[0]


class Counted:
    """A backbone that counts the pictures it is given."""

    def __init__(self, network: nn.Module) -> None:
        self.run, self.pictures = engines.torch_run(network, "fp32", "cpu"), 0

    def __call__(self, pixels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        self.pictures += len(pixels)
        return self.run(pixels)


def embedded(run: engines.Run, contents: list[tuple[str, bytes]], folder: Path, views: int = 0) -> dict[str, int]:
    """The counters; features lie in `folder`."""
    index = shards.index(side(folder.with_name(f"{folder.name}-in"), contents))
    results = embed.results_of(index, run, SPEC, 10**8, views, embed.BATCH)
    return embed.embed(index, {"cat": 0, "dog": 1}, 512, folder, results, embed.BATCH, views)


def read(folder: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Features [1 + K, D] by photo."""
    names = json.loads((folder / "photos.json").read_text())
    features = np.load(folder / "features.npy", allow_pickle=False)
    assert (features.dtype, len(features)) == (np.float32, len(names))
    return dict(zip(names, features, strict=True))


@pytest.mark.parametrize("views", [0, 4])
def test_each_photo_is_decoded_once_and_each_view_forwarded_once(
    names_and_photos: list[tuple[str, bytes]], backbone: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    views: int,
) -> None:  # fmt: skip
    decoded: list[bytes] = []
    decode = photos.decode
    monkeypatch.setattr(photos, "decode", lambda data, limit: (decoded.append(data), decode(data, limit))[1])
    monkeypatch.setenv("SM_NUM_CPUS", "1")
    network = Counted(backbone)
    counters = embedded(network, names_and_photos, tmp_path / "out", views)
    assert counters == {"decodes": 100, "forwards": 100 * (1 + views), "skipped": 0}
    assert network.pictures == 100 * (1 + views)
    assert sorted(decoded) == sorted(data for _, data in names_and_photos)
    labels = np.load(tmp_path / "out" / "labels.npy", allow_pickle=False)
    assert labels.dtype == np.int64
    assert labels.tolist() == [int(name.startswith("dog")) for name, _ in names_and_photos]


def test_a_feature_is_a_function_of_the_photo_and_not_of_its_neighbours(
    names_and_photos: list[tuple[str, bytes]], backbone: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SM_NUM_CPUS", "1")
    graph = engines.graph(backbone, 32, "onnxruntime", "fp32", tmp_path)
    for name, contents, views in (
        ("all", names_and_photos, 2), ("again", names_and_photos, 2), ("backwards", names_and_photos[::-1], 2),
        ("some", names_and_photos[:7], 2), ("unaugmented", names_and_photos, 0),
    ):  # fmt: skip
        embedded(graph, contents, tmp_path / name, views)
    everything = read(tmp_path / "all")
    assert (tmp_path / "all" / "features.npy").read_bytes() == (tmp_path / "again" / "features.npy").read_bytes()
    for other, count in (("backwards", 100), ("some", 7), ("unaugmented", 100)):
        features = read(tmp_path / other)
        assert len(features) == count
        for name, values in features.items():
            np.testing.assert_array_equal(values, everything[name][: len(values)])
    one = everything["dog/000.jpg"]
    assert not np.allclose(one[0], everything["cat/001.jpg"][0], rtol=1e-2)
    assert not np.allclose(one[0], one[1], rtol=1e-2)  # the views differ
    assert not np.allclose(one[1], one[2], rtol=1e-2)


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1", "mobilenet_v3_small"])
def test_the_engines_agree_with_the_plain_network(
    names_and_photos: list[tuple[str, bytes]], tmp_path: Path, name: str
) -> None:
    network, _ = networks.create(name, 64)
    pixels = np.stack([photos.centre_crop(photos.decode(data), SPEC64) for _, data in names_and_photos[:8]])
    batch = photos.normalise(pixels, SPEC64)
    with torch.inference_mode():
        plain = network(torch.from_numpy(batch)).numpy()
    runs: list[engines.Run] = [engines.torch_run(network, "fp32", "cpu")]
    runs.append(engines.graph(network, 64, "onnxruntime", "fp32", tmp_path))
    for run in runs:
        assert np.linalg.norm(run(batch) - plain) <= 1e-5 * np.linalg.norm(plain)
    coarse = engines.torch_run(network, "bf16", "cpu")(batch)  # emulated where the processor has none
    assert 0 < np.linalg.norm(coarse - plain) <= 2e-2 * np.linalg.norm(plain)


@pytest.mark.parametrize(
    ("engine", "precision", "device", "message"),
    [
        ("onnxruntime", "fp32", "cuda", "engine onnxruntime runs on a CPU only"),
        ("onnxruntime", "bf16", "cpu", "onnxruntime cannot compute in bf16|this cpu cannot compute in bf16"),
    ],
)
def test_an_engine_that_cannot_is_refused(engine: str, precision: str, device: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        engines.choose(engine, precision, device)


def test_the_fastest_engine_that_is_there_is_chosen() -> None:
    assert engines.choose("auto", "fp32", "cpu") == "onnxruntime"
    assert engines.choose("auto", "fp32", "cuda") == "torch"
    assert engines.choose("torch", "fp32", "cpu") == "torch"


def test_an_unreadable_photo_is_skipped_and_the_others_keep_their_features(
    names_and_photos: list[tuple[str, bytes]], backbone: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("SM_NUM_CPUS", "1")
    graph = engines.graph(backbone, 32, "onnxruntime", "fp32", tmp_path)
    good = names_and_photos[:40]
    damaged = [*good[:3], ("cat/text.jpg", b"text"), *good[3:], ("dog/zzz.jpg", b"")]
    embedded(graph, good, tmp_path / "good", 1)
    counters = embedded(graph, damaged, tmp_path / "bad", 1)
    assert counters == {"decodes": 40, "forwards": 80, "skipped": 2}
    assert "warning: cat/text.jpg cannot be read and is skipped: not a JPEG" in capsys.readouterr().out
    expected, features = read(tmp_path / "good"), read(tmp_path / "bad")
    assert list(features) == list(expected)
    for name, values in features.items():
        np.testing.assert_array_equal(values, expected[name])


class TestScript:
    """As a job."""

    @pytest.fixture(autouse=True)
    def one_line(self, fails: Callable[..., None]) -> None:
        self.fails = fails

    @pytest.fixture
    def sides(self, names_and_photos: list[tuple[str, bytes]], tmp_path: Path) -> dict[str, Path]:
        parts = {"train": names_and_photos[:70], "valid": names_and_photos[70:90], "test": names_and_photos[90:]}
        (tmp_path / "weights").mkdir()
        (tmp_path / "weights" / "random.json").write_text('{"init": "random", "seed": 5}')
        return {name: side(tmp_path / name, contents) for name, contents in parts.items()}

    @pytest.fixture
    def go(self, run: Callable[..., Any], sides: dict[str, Path], tmp_path: Path) -> Callable[..., Any]:
        (tmp_path / "report").mkdir()
        (tmp_path / "report" / "split.json").write_text('{"classes": ["cat", "dog"], "fingerprint": "0123"}')

        def go(*options: object, name: str = "features", **env: str) -> Any:
            paths = ("--train", sides["train"], "--valid", sides["valid"], "--weights", tmp_path / "weights")
            size = ("--report", tmp_path / "report", "--image-size", 32, "--resize-size", 32)
            return run("embed.py", *paths, *size, "--output", tmp_path / name, *options, env=env)

        return go

    def test_workers_change_nothing(self, go: Callable[..., Any], sides: dict[str, Path], tmp_path: Path) -> None:
        options = ("--test", sides["test"], "--augmented-views", 1)
        alone, together = (go(*options, name=n, SM_NUM_CPUS=n) for n in ("1", "3"))
        assert (alone.status, together.status) == (0, 0)
        first, second = tmp_path / "1" / "algo-1", tmp_path / "3" / "algo-1"
        for name in SIDES:
            for file in ("features.npy", "labels.npy", "photos.json"):
                assert (first / name / file).read_bytes() == (second / name / file).read_bytes()
        assert (first / "features.json").read_text() == (second / "features.json").read_text()
        assert json.loads((first / "features.json").read_text()) == {
            "backbone": "resnet18",
            "feature_dim": 512,
            "classes": ["cat", "dog"],
            "preprocessing": SPEC.to_json() | {"mean": list(SPEC.mean), "std": list(SPEC.std)},
            "weights": {"kind": "random", "name": "random.json", "seed": 5},
            "views": 1,
            "engine": "onnxruntime",
            "precision": "fp32",
            "data": "0123",
            "code": fingerprint.of_folder(CODE),
            "counters": {"decodes": 100, "forwards": 170, "skipped": 0},
        }
        assert "WARNING: the resnet18 backbone starts from RANDOM weights" in alone.log

    def test_the_test_side_is_left_alone_unless_asked_for(self, go: Callable[..., Any], tmp_path: Path) -> None:
        assert go().status == 0
        part = tmp_path / "features" / "algo-1"
        assert sorted(path.name for path in part.iterdir()) == ["features.json", "train", "valid"]

    def test_several_instances_give_the_same_features_in_the_same_order(
        self, go: Callable[..., Any], names_and_photos: list[tuple[str, bytes]], tmp_path: Path
    ) -> None:
        parts = {"train": sorted(names_and_photos[:70]), "valid": sorted(names_and_photos[70:90])}  # as Split sorts
        whole = [o for name, contents in parts.items() for o in (f"--{name}", side(tmp_path / f"{name}-all", contents))]
        assert go("--augmented-views", 2, *whole, name="one").status == 0
        for host in range(3):
            config = tmp_path / f"resourceconfig-{host}.json"
            config.write_text(json.dumps({"current_host": f"algo-{host + 1}", "hosts": ["algo-1", "algo-2", "algo-3"]}))
            shares = [
                option
                for name, contents in parts.items()
                for option in (f"--{name}", side(tmp_path / f"{name}-{host}", contents[host::3]))
            ]
            job = go("--augmented-views", 2, *shares, "--resource-config", config, name="three")
            assert job.status == 0, job.error
        one, three = tmp_path / "one", tmp_path / "three"
        metas = [features.describe(folder) for folder in (one, three)]
        assert metas[0] == metas[1]
        for name in parts:
            alone, together = (features.load(folder, name, metas[0]) for folder in (one, three))
            assert len(together.parts) == 3
            np.testing.assert_array_equal(alone.labels, together.labels)
            rows = np.arange(len(alone))
            for view in range(alone.views + 1):
                np.testing.assert_array_equal(alone.take(rows, view), together.take(rows, view))
            mixed = np.random.default_rng(0).permutation(len(alone))
            np.testing.assert_array_equal(alone.take(mixed, mixed % (1 + alone.views)),
                                          together.take(mixed, mixed % (1 + alone.views)))  # fmt: skip

    def test_parts_of_two_runs_are_refused(self, go: Callable[..., Any], tmp_path: Path) -> None:
        assert go().status == 0
        part = tmp_path / "features" / "algo-2"
        shutil.copytree(tmp_path / "features" / "algo-1", part)
        meta = json.loads((part / "features.json").read_text())
        (part / "features.json").write_text(json.dumps({**meta, "data": "4567"}))
        with pytest.raises(UserError, match="differ in data: they are of two runs"):
            features.describe(tmp_path / "features")

    def test_a_report_that_is_none(self, go: Callable[..., Any], tmp_path: Path) -> None:
        (tmp_path / "report" / "split.json").write_text("{}")
        self.fails(go(), "split.json cannot be read (it is not of that form)")

    def test_too_many_views(self, go: Callable[..., Any]) -> None:
        self.fails(go("--augmented-views", 33), "--augmented-views 33: expected 0 to 32")

    def test_an_unknown_backbone(self, go: Callable[..., Any]) -> None:
        self.fails(go("--backbone", "resnet81"), "backbone 'resnet81' is not a torchvision", "did you mean resnet18")

    def test_a_crop_that_does_not_fit(self, go: Callable[..., Any]) -> None:
        self.fails(go("--image-size", 64), "image_size = 64: expected 1 to resize_size (32)")

    def test_a_side_of_unreadable_photos(self, go: Callable[..., Any], sides: dict[str, Path]) -> None:
        self.fails(go("--max-pixels", 10), "none of the 70 photos of train can be read")

    def test_weights_that_are_not_finite(self, go: Callable[..., Any], tmp_path: Path) -> None:
        state = networks.create("resnet18", 32)[0].state_dict()
        state["conv1.weight"][0, 0, 0, 0] = float("nan")
        shutil.rmtree(tmp_path / "weights")
        (tmp_path / "weights").mkdir()
        torch.save(state, tmp_path / "weights" / "broken.pth")
        self.fails(go(), "the backbone gives features that are not finite")
