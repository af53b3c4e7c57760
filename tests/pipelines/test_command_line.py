"""The command line before it does anything: help at once, and one clear line for what cannot be done."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from moto import mock_aws

from pipelines import run
from pipelines.contract import ROOT

VERBS = (
    "definition",
    "upsert",
    "start",
    "run",
    "status",
    "list",
    "logs",
    "stop",
    "predict",
    "upload",
    "sample",
    "down",
)


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Exit code, stdout, stderr; argparse's own refusals too."""
    try:
        status = run.main([str(each) for each in arguments])
    except SystemExit as error:
        status = int(error.code or 0)
    return status, *capsys.readouterr()


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with mock_aws():
        yield


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(capsys: pytest.CaptureFixture[str], verb: str) -> None:
    status, out, err = call(capsys, verb, "--help")
    assert (status, err) == (0, "")
    assert f"usage: run.py {verb}" in out
    assert "--json" in out


def test_the_verbs_are_those_that_are_done() -> None:
    from pipelines.commands import VERBS as done

    assert tuple(done) == VERBS


def test_help_imports_nothing_heavy_and_names_every_verb() -> None:
    code = (
        "import runpy, sys\n"
        "sys.argv = ['run.py', '--help']\n"
        "try: runpy.run_path('pipelines/run.py', run_name='__main__')\n"
        "except SystemExit as error: assert not error.code\n"
        "heavy = {'boto3', 'botocore', 'pydantic', 'torch', 'sagemaker', 'yaml', 'rich', 'numpy', 'PIL'}\n"
        "print('imported:', sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "imported: []"
    listed = [line.split()[0] for line in done.stdout.splitlines() if line.startswith("    ") and line.strip()]
    assert set(VERBS) <= set(listed)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((), "VERB"),
        (("bake",), "invalid choice: 'bake'"),
        (("definition", "--conf", "x"), "unrecognized arguments: --conf x"),
        (("logs",), "STEP"),
        (("predict",), "IMAGE"),
    ],
)
def test_what_is_no_command_exits_with_2(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], named: str
) -> None:
    status, out, err = call(capsys, *arguments)
    assert (status, out) == (2, "")
    assert named in err


def test_definition_prints_json_without_credentials_or_network(tmp_path: Path) -> None:
    blocked = "http://127.0.0.1:9"  # nobody listens
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "https_proxy": blocked, "http_proxy": blocked}
    command = [
        sys.executable,
        "pipelines/run.py",
        "definition",
        "--config",
        "configs/dogbreed.yaml",
        "--set",
        "epochs=7",
    ]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    epochs = next(each for each in json.loads(done.stdout)["Parameters"] if each["Name"] == "Epochs")
    assert epochs["DefaultValue"] == 7


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "empty").mkdir()
    (tmp_path / "photo.jpg").write_bytes(b"x")
    (tmp_path / "misspelt.yaml").write_text("epoch: 3\n")
    (tmp_path / "broken.yaml").write_text("lr: [0.1\nepochs: 3\n")
    (tmp_path / "list.yaml").write_text("- epochs\n")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--data", "{}/empty"), "is empty: expected class folders with photos in them"),
        (("--data", "{}/photo.jpg"), "is a file: expected a folder of class folders"),
        (("--data", "{}/nowhere"), "no such folder"),
        (("--data", "s3://No_Bucket/x"), "is not a URI of S3"),
        (("--weights", "{}/nowhere.pth"), "is no file here: expected a torchvision name"),
        (("--weights", "{}/photo.jpg"), "expected a file of PyTorch weights"),
        (("--set", "backbone=resnet19"), "backbone = 'resnet19': torchvision has no classification model of that name"),
        (("--set", "epochs"), "--set epochs: expected field=value"),
        (("--set", "epoch=3"), "the command line: unknown field 'epoch'; did you mean epochs?"),
        (("--set", "epochs=soon"), "the command line: epochs = 'soon'"),
        (("--config", "{}/misspelt.yaml"), "unknown field 'epoch'; did you mean epochs?"),
        (("--config", "{}/broken.yaml"), "broken.yaml: not YAML"),
        (("--config", "{}/binary.yaml"), "binary.yaml: not YAML"),
        (("--config", "{}/list.yaml"), "expected lines of `field: value`, got list"),
        (("--config", "{}/none.yaml"), "No such file or directory; presets here: configs/demo.yaml"),
        (("--config", "{}"), "Is a directory"),
    ],
)
def test_bad_input_is_one_clear_line(
    capsys: pytest.CaptureFixture[str],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    named: str,
) -> None:
    monkeypatch.chdir(ROOT)
    status, out, err = call(capsys, "definition", *(each.format(folder) for each in arguments))
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert named in err


def test_weights_out_of_reach_are_one_clear_line_and_no_pipeline(
    aws: None, capsys: pytest.CaptureFixture[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(folder))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nobody listens
    status, out, err = call(capsys, "upsert", "--set", "weights=IMAGENET1K_V1")
    assert (status, out) == (2, "")
    (error,) = [line for line in err.splitlines() if not line.startswith("staged code: ")]
    assert error.startswith("error: the weights IMAGENET1K_V1 of resnet18 are not staged and cannot be fetched")
    assert "Three ways out" in error
    import boto3

    assert boto3.client("sagemaker").list_pipelines()["PipelineSummaries"] == []


def test_every_photo_that_cannot_be_read_is_named(aws: None, capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    status, _, err = call(capsys, "predict", folder / "none.jpg", folder)
    assert status == 2
    assert [line.split(" cannot be read: ")[1] for line in err.splitlines()] == [
        "No such file or directory",
        "Is a directory",
    ]


def test_the_sample_wants_a_folder(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    for target, named in (("photo.jpg", "is a file: expected a folder"), ("photo.jpg/below", "Not a directory")):
        status, _, err = call(capsys, "sample", folder / target)
        assert status == 2
        assert err.startswith("error: ")
        assert named in err
