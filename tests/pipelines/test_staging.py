"""What a definition points to: named after its content, fetched once, and a clear word where it cannot be had."""

import functools
import hashlib
import http.server
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torchvision
from torchvision.models import Weights, WeightsEnum

from pipelines import settings, staging
from pipelines.bundle import Bundle
from pipelines.errors import UserError
from pipelines.settings import Settings
from pipelines.staging import locate_data, locate_weights, split_uri

BASE = "s3://sagemaker-us-east-1-000000000000/dogbreed"
CONTENT = b"weights, as far as staging looks at them"
HASH = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def given() -> Settings:
    return settings.load()


# --- photos


def test_a_dataset_is_named_after_its_content(given: Settings, photos: Path) -> None:
    staged = locate_data(given, str(photos))
    assert staged.uri.startswith(f"{BASE}/data/")
    assert list(staged.sources) == ["cat/1.jpg", "cat/2.jpg", "dog/1.jpg"]
    moved = photos.rename(photos.with_name("elsewhere"))
    os.utime(moved / "cat/1.jpg", (0, 0))
    (moved / ".DS_Store").write_bytes(b"x")
    assert locate_data(given, str(moved)).uri == staged.uri
    (moved / "cat/1.jpg").rename(moved / "cat/3.jpg")
    renamed = locate_data(given, str(moved)).uri
    (moved / "dog/1.jpg").write_bytes(b"dog/2.jpg")
    assert len({staged.uri, renamed, locate_data(given, str(moved)).uri}) == 3


def test_links_are_followed_but_not_in_circles(given: Settings, photos: Path) -> None:
    (photos / "dog/all").symlink_to(photos)
    (photos / "fox").symlink_to(photos / "cat")
    assert {"fox/1.jpg", "cat/1.jpg"} <= set(locate_data(given, str(photos)).sources)
    assert not [name for name in locate_data(given, str(photos)).sources if name.count("all") > 1]


def test_without_a_folder_it_is_where_photos_are_kept(given: Settings) -> None:
    assert locate_data(given, "") == staging.Staged("photos", f"{BASE}/photos")
    assert locate_data(given, "s3://photos/dogs") == staging.Staged("photos", "s3://photos/dogs")


def test_what_is_no_dataset_is_refused(given: Settings, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.jpg").write_bytes(b"x")
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "a\nb.jpg").write_bytes(b"x")
    for name, words in (
        ("nowhere", "no such folder"),
        ("file.jpg", "is a file: expected a folder"),
        ("empty", "is empty: expected class folders"),
        ("odd", "which cannot be an S3 key; rename it"),
    ):
        with pytest.raises(UserError, match=words) as error:
            locate_data(given, str(tmp_path / name))
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("uri", ["s3://", "s3://B/x", "s3://a", "s3://bucket_name/x", "S3://bucket/x", "bucket/x"])
def test_what_is_no_uri_of_s3_is_refused(uri: str) -> None:
    with pytest.raises(UserError, match="is not a URI of S3: expected s3://BUCKET/KEY"):
        split_uri(uri)


def test_a_uri_is_bucket_and_key() -> None:
    assert split_uri("s3://bucket/a/b c/ü") == ("bucket", "a/b c/ü")
    assert split_uri("s3://bucket") == split_uri("s3://bucket/") == ("bucket", "")


# --- weights


def test_a_file_of_weights_is_named_after_its_content(given: Settings, tmp_path: Path) -> None:
    file = tmp_path / "my weights.pth"
    file.write_bytes(CONTENT)
    staged = locate_weights(given, str(file))
    assert staged.uri == f"{BASE}/weights/{HASH[:16]}"
    assert list(staged.sources) == ["my_weights.pth"]
    file.write_bytes(b"other")
    assert locate_weights(given, str(file)).uri != staged.uri


def test_weights_of_other_kinds(given: Settings) -> None:
    assert locate_weights(given, "s3://weights/a.pth") == staging.Staged("weights", "s3://weights/a.pth")
    assert locate_weights(given, "random").uri == f"{BASE}/weights/random-0"
    seeded = locate_weights(given.model_copy(update={"seed": 3}), "random")
    assert seeded.uri == f"{BASE}/weights/random-3"
    assert locate_weights(given, "IMAGENET1K_V1").uri == f"{BASE}/weights/resnet18-IMAGENET1K_V1"


def test_what_are_no_weights_is_refused(given: Settings, tmp_path: Path) -> None:
    (tmp_path / "weights.zip").write_bytes(b"x")
    for weights, words in (
        (tmp_path / "weights.zip", r"expected a file of PyTorch weights, \*\.pth or \*\.pt"),
        (tmp_path / "none.pth", "is no file here: expected a torchvision name"),
        (tmp_path, "is a folder: expected a torchvision name"),
    ):
        with pytest.raises(UserError, match=words):
            locate_weights(given, str(weights))
    with pytest.raises(UserError, match="torchvision has IMAGENET1K_V1, DEFAULT for resnet18"):
        fetch(given, "IMAGENET1K_V9")


def fetch(given: Settings, name: str = "IMAGENET1K_V1") -> Path:
    """The local file that would be staged."""
    (source,) = locate_weights(given, name).sources.values()
    assert callable(source.content)
    return source.content()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """torch's cache of downloads, empty; and no proxy between us and 127.0.0.1."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return tmp_path / "torch" / "hub" / "checkpoints"


def point_torchvision_at(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Real weights are tens of megabytes, and their names carry their own hash: nothing small can stand in for them."""

    class Small(WeightsEnum):
        IMAGENET1K_V1 = Weights(url=url, transforms=functools.partial(int), meta={})

    monkeypatch.setattr(torchvision.models, "get_model_weights", lambda name: Small)


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    """A web server with the weights in it, and with a file that is not what its name says."""
    (tmp_path / "www").mkdir()
    for name in (f"net-{HASH[:8]}.pth", "net-00000000.pth"):
        (tmp_path / "www" / name).write_bytes(CONTENT)
    handler = functools.partial(Quiet, directory=str(tmp_path / "www"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


NOWHERE = "http://127.0.0.1:9"  # discard: nobody listens


def test_torchvisions_own_cache_is_used_without_a_network(
    given: Settings, hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    point_torchvision_at(f"{NOWHERE}/net-{HASH[:8]}.pth", monkeypatch)
    hub.mkdir(parents=True)
    (hub / f"net-{HASH[:8]}.pth").write_bytes(CONTENT)
    assert fetch(given) == hub / f"net-{HASH[:8]}.pth"


def test_weights_are_fetched_once_and_a_damaged_cache_is_made_good(
    given: Settings, hub: Path, web: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"net-{HASH[:8]}.pth"
    point_torchvision_at(f"{web}/{name}", monkeypatch)
    hub.mkdir(parents=True)
    (hub / name).write_bytes(CONTENT[:10])  # an earlier download that broke off
    assert fetch(given).read_bytes() == CONTENT
    point_torchvision_at(f"{NOWHERE}/{name}", monkeypatch)
    assert fetch(given).read_bytes() == CONTENT


def check_ways_out(message: str) -> None:
    for words in ("IMAGENET1K_V1 of resnet18", "Three ways out", "connect this machine", "--weights FILE.pth",
                  "--weights random"):  # fmt: skip
        assert words in message
    assert "\n" not in message


def test_a_damaged_download_is_refused_and_not_kept(
    given: Settings, hub: Path, web: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    point_torchvision_at(f"{web}/net-00000000.pth", monkeypatch)
    with pytest.raises(UserError, match="invalid hash value") as error:
        fetch(given)
    check_ways_out(str(error.value))
    assert list(hub.iterdir()) == []


def test_offline_the_three_ways_out_are_named(given: Settings, hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", NOWHERE)  # torchvision's own address, out of reach
    with pytest.raises(UserError, match=r"https://download\.pytorch\.org/models/resnet18-f37072fd\.pth") as error:
        fetch(given)
    check_ways_out(str(error.value))
    assert socket.getdefaulttimeout() is None


def test_a_network_that_swallows_everything_is_given_up(
    given: Settings, hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert staging._LONG <= 30
    monkeypatch.setattr(staging, "_LONG", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections, says nothing
        point_torchvision_at(f"http://127.0.0.1:{silent.getsockname()[1]}/net-{HASH[:8]}.pth", monkeypatch)
        began = time.monotonic()
        with pytest.raises(UserError, match="timed out") as error:
            fetch(given)
    assert time.monotonic() - began < 10
    check_ways_out(str(error.value))


# --- the plan


def test_a_plan_puts_code_weights_and_photos_below_the_pipelines_prefix(given: Settings, photos: Path) -> None:
    bundle = Bundle({"train.py": b"pass"})
    wanted = given.model_copy(update={"data": str(photos), "weights": "random"})
    plan = staging.plan(wanted, bundle)
    assert plan.code.uri == f"{BASE}/code/{bundle.hash}"
    assert set(plan.code.sources) == {"sourcedir.tar.gz", "src/train.py"}
    assert (plan.settings.data, plan.settings.weights) == (plan.photos.uri, plan.weights.uri)
    assert staging.plan(wanted, bundle).settings == plan.settings
    changed = {"data": wanted.data, "weights": wanted.weights}
    assert plan.settings.model_copy(update=changed) == wanted
