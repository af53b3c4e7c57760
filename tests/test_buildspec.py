"""buildspec.yml, run as CodeBuild runs it: the shell, the spec's variables and commands, and AWS as moto serves it."""

import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from moto.server import ThreadedMotoServer

from pipelines.contract import ROOT

SPEC = yaml.safe_load((ROOT / "buildspec.yml").read_text())
MAIN, TOPIC = "refs/heads/main", "refs/heads/topic"
KEYS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": "us-east-1"}


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    moto = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    moto.start()
    host, port = moto.get_host_and_port()
    yield f"http://{host}:{port}"
    moto.stop()


@pytest.fixture
def aws(server: str) -> str:
    """The address of an AWS with nothing in it but a bucket with a photo."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    opener.open(urllib.request.Request(f"{server}/moto-api/reset", method="POST"), timeout=30).close()
    client(server, "s3").create_bucket(Bucket="photos")
    client(server, "s3").put_object(Bucket="photos", Key="dogs/poodle/1.jpg", Body=b"photo")
    return server


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository as its commands want it, whichever environment runs these tests: with that one as .venv."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("pipelines", "steps", "code", "configs", "Makefile"):
        (folder / name).symlink_to(ROOT / name)
    (folder / ".venv").symlink_to(sys.prefix)
    return folder


def client(url: str, service: str) -> Any:
    names = ("aws_access_key_id", "aws_secret_access_key", "region_name")
    return boto3.client(service, endpoint_url=url, **dict(zip(names, KEYS.values(), strict=True)))


def phase(name: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """A phase's commands, exactly as written; the spec's variables are defaults, as CodeBuild has it."""
    env = {"PATH": os.environ["PATH"], "HOME": str(folder), "no_proxy": "127.0.0.1", **KEYS}
    script = "\n".join(SPEC["phases"][name]["commands"])
    return subprocess.run(
        ["sh", "-e", "-c", script],
        cwd=folder,
        env={**env, **SPEC["env"]["variables"], **variables},
        capture_output=True,
        text=True,
        timeout=120,
    )


def build(checkout: Path, aws: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """The build phase. The demo's config: its weights need not be fetched."""
    return phase("build", checkout, **{"AWS_ENDPOINT_URL": aws, "CONFIG": "configs/demo.yaml", **variables})


def definition_printed(checkout: Path, *options: str) -> Any:
    """What `run.py definition` prints, in an environment without AWS."""
    command = [".venv/bin/python", "pipelines/run.py", "definition", *options]
    done = subprocess.run(
        command, cwd=checkout, env={"PATH": os.environ["PATH"], "HOME": str(checkout)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def executions(aws: str) -> list[Any]:
    found = client(aws, "sagemaker").list_pipeline_executions(PipelineName="digits-demo")
    return list(found["PipelineExecutionSummaries"])


def test_another_branch_creates_the_very_pipeline_and_starts_nothing(checkout: Path, aws: str) -> None:
    client(aws, "s3").create_bucket(Bucket="our-bucket")
    done = build(
        checkout, aws, DATA="s3://photos/dogs", ROLE="Jobs", BUCKET="our-bucket", CODEBUILD_WEBHOOK_HEAD_REF=TOPIC
    )
    assert done.returncode == 0, done.stderr
    assert f"not started: that is for {MAIN}, not '{TOPIC}'" in done.stdout
    created = client(aws, "sagemaker").describe_pipeline(PipelineName="digits-demo")
    assert created["RoleArn"] == "arn:aws:iam::123456789012:role/Jobs"
    overrides = ("--set", "role=Jobs", "--set", "bucket=our-bucket", "--set", "account=123456789012")
    printed = definition_printed(checkout, "--config", "configs/demo.yaml", "--data", "s3://photos/dogs", *overrides)
    assert json.loads(created["PipelineDefinition"]) == printed
    assert executions(aws) == []


def test_the_main_branch_starts_it(checkout: Path, aws: str) -> None:
    done = build(checkout, aws, DATA="s3://photos/dogs", CODEBUILD_WEBHOOK_HEAD_REF=MAIN)
    assert done.returncode == 0, done.stderr
    (execution,) = executions(aws)
    assert f"started {execution['PipelineExecutionArn']}" in done.stdout


def test_without_a_webhook_and_with_the_defaults_it_is_created(checkout: Path, aws: str) -> None:
    done = build(checkout, aws)
    assert done.returncode == 0, done.stderr
    text = client(aws, "sagemaker").describe_pipeline(PipelineName="digits-demo")["PipelineDefinition"]
    data = next(each for each in json.loads(text)["Parameters"] if each["Name"] == "InputData")
    assert data["DefaultValue"] == "s3://sagemaker-us-east-1-123456789012/digits-demo/photos"
    assert executions(aws) == []


@pytest.mark.parametrize(
    ("variables", "named", "created"),
    [
        ({"CONFIG": "configs/no-such.yaml"}, "--config configs/no-such.yaml", False),
        # Upserting works here, starting does not: there are no photos yet.
        ({"DATA": "s3://photos/cats"}, "InputData s3://photos/cats holds nothing", True),
    ],
)
def test_what_fails_fails_the_phase(
    checkout: Path, aws: str, variables: dict[str, str], named: str, created: bool
) -> None:
    done = build(checkout, aws, CODEBUILD_WEBHOOK_HEAD_REF=MAIN, **variables)
    assert done.returncode == 2, done.stdout
    assert named in done.stderr
    pipelines = client(aws, "sagemaker").list_pipelines()["PipelineSummaries"]
    assert [each["PipelineName"] for each in pipelines] == (["digits-demo"] if created else [])
    assert not created or executions(aws) == []


@pytest.mark.parametrize("status", [0, 3])
def test_the_phases_before_install_with_cpu_wheels_and_test_with_a_report(tmp_path: Path, status: int) -> None:
    """`make` as it is, but scripts that write down what they are given: the real ones would run these tests again."""
    (tmp_path / "Makefile").symlink_to(ROOT / "Makefile")
    (tmp_path / "scripts").mkdir()
    for name, line in (("install", 'echo "index $TORCH_INDEX"'), ("test", f'echo "tests $*"; exit {status}')):
        (tmp_path / "scripts" / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / "scripts" / name).chmod(0o755)
    assert phase("install", tmp_path).stdout == "index https://download.pytorch.org/whl/cpu\n"
    tested = phase("pre_build", tmp_path)
    assert (tested.returncode != 0) == (status != 0)
    report = SPEC["reports"]["tests"]
    assert tested.stdout.startswith(f"tests --junitxml={report['base-directory']}/{report['files'][0]}\n")


def test_what_codebuild_itself_reads() -> None:
    assert SPEC["version"] == 0.2
    assert list(SPEC["phases"]) == ["install", "pre_build", "build"]
    assert SPEC["phases"]["install"]["runtime-versions"] == {"python": "3.11"}
    assert SPEC["reports"]["tests"]["file-format"] == "JUNITXML"
    variables = SPEC["env"]["variables"]
    assert all(isinstance(value, str) for value in variables.values())
    assert f"{variables['PIP_CACHE_DIR']}/**/*" in SPEC["cache"]["paths"]
    assert (ROOT / variables["CONFIG"]).is_file()
    commands = [command for each in SPEC["phases"].values() for command in each["commands"]]
    assert not [command for command in commands if "||" in command]
