"""The command line against AWS as moto plays it: the same code, the same definition."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto import mock_aws

from pipelines import run, settings, staging

ACCOUNT = "123456789012"  # moto's
CONFIG = ("--config", "configs/demo.yaml")


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("AWS_PROFILE", "AWS_ENDPOINT_URL", "AWS_REGION"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with mock_aws():
        yield


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, Any, str]:
    """Exit code, JSON on stdout, text on stderr."""
    status = run.main(["--json", *map(str, arguments)])
    out, err = capsys.readouterr()
    return status, json.loads(out) if out else None, err


def client(name: str) -> Any:
    return boto3.client(name, region_name="us-east-1")


def keys(bucket: str, prefix: str = "") -> set[str]:
    found = client("s3").list_objects_v2(Bucket=bucket, Prefix=prefix).get("Contents", [])
    return {item["Key"] for item in found}


def test_upsert_stages_everything_and_creates_the_very_same_definition(
    aws: None, capsys: pytest.CaptureFixture[str], photos: Path
) -> None:
    status, answer, err = call(capsys, "upsert", *CONFIG, "--data", photos, "--set", "role=Jobs")
    assert status == 0, err
    bucket = f"sagemaker-us-east-1-{ACCOUNT}"
    assert answer["created"] is True
    assert answer["data"].startswith(f"s3://{bucket}/digits-demo/data/")
    for uri, names in ((answer["data"], {"cat/1.jpg", "cat/2.jpg", "dog/1.jpg"}), (answer["weights"], {"random.json"})):
        prefix = uri.removeprefix(f"s3://{bucket}/")
        assert keys(bucket, prefix) == {f"{prefix}/{name}" for name in names}
    assert f"{answer['code'].removeprefix(f's3://{bucket}/')}/sourcedir.tar.gz" in keys(bucket)
    blocked = client("s3").get_public_access_block(Bucket=bucket)["PublicAccessBlockConfiguration"]
    assert all(blocked.values())

    created = client("sagemaker").describe_pipeline(PipelineName="digits-demo")
    assert created["RoleArn"] == f"arn:aws:iam::{ACCOUNT}:role/Jobs"
    # The definition is the one that `definition` prints for this account: nothing depends on where it goes.
    from pipelines import pipeline

    options = {"data": str(photos), "role": "Jobs", "account": ACCOUNT}
    plan = staging.plan(settings.load(Path("configs/demo.yaml"), options))
    assert created["PipelineDefinition"] == pipeline.definition(plan.settings, plan.code.uri)


def test_upsert_again_updates_and_uploads_nothing(aws: None, capsys: pytest.CaptureFixture[str], photos: Path) -> None:
    assert call(capsys, "upsert", *CONFIG, "--data", photos)[1]["created"] is True
    status, answer, err = call(capsys, "upsert", *CONFIG, "--data", photos, "--set", "trials=3")
    assert status == 0
    assert answer["created"] is False
    assert "staged" not in err
    text = client("sagemaker").describe_pipeline(PipelineName="digits-demo")["PipelineDefinition"]
    assert '"MaxNumberOfTrainingJobs": 3' in text


def test_start_gives_the_parameters(aws: None, capsys: pytest.CaptureFixture[str], photos: Path) -> None:
    call(capsys, "upsert", *CONFIG, "--data", photos)
    options = ("-p", "Epochs=3", "-p", "Weights=random", "-p", f"InputData={photos}")
    status, answer, err = call(capsys, "start", *CONFIG, *options)
    assert status == 0, err
    sagemaker = client("sagemaker")
    found = sagemaker.list_pipeline_parameters_for_execution(PipelineExecutionArn=answer["execution_arn"])
    given = {each["Name"]: each["Value"] for each in found["PipelineParameters"]}
    assert given["Epochs"] == "3"
    assert given["InputData"].startswith("s3://")
    assert given["Weights"].startswith("s3://")


@pytest.mark.parametrize(
    ("parameter", "named"),
    [
        ("Epoch=3", "there is no parameter Epoch; there are: InputData, Weights"),
        ("Epochs=three", "epochs = 'three'"),
        ("Epochs=0", "greater than or equal to 1"),
        ("Trainable=body", "'head' or 'all'"),
        ("TestLossThreshold=low", "test_loss_threshold = 'low'"),
        ("EndpointInstanceType=large", "endpoint_instance_type = 'large'"),
        ("Epochs", "expected Name=Value"),
        ("InputData=nowhere", "no such folder"),
        ("InputData=s3://B/x", "is not a URI of S3"),
    ],
)
def test_start_refuses_a_wrong_parameter(
    aws: None, capsys: pytest.CaptureFixture[str], photos: Path, parameter: str, named: str
) -> None:
    call(capsys, "upsert", *CONFIG, "--data", photos)
    status, answer, err = call(capsys, "start", *CONFIG, "-p", parameter)
    assert status == 2
    assert answer is None
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert named in err
    assert client("sagemaker").list_pipeline_executions(PipelineName="digits-demo")["PipelineExecutionSummaries"] == []


def test_start_without_photos_or_pipeline(aws: None, capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = call(capsys, "start", *CONFIG)
    assert status == 2
    assert "there is no pipeline digits-demo; run `upsert` first" in err
    assert call(capsys, "upsert", *CONFIG)[0] == 0
    status, _, err = call(capsys, "start", *CONFIG)
    assert status == 2
    assert "digits-demo/photos holds nothing: give photos with --data DIR" in err


def test_a_bucket_that_was_asked_for_must_exist(aws: None, capsys: pytest.CaptureFixture[str], photos: Path) -> None:
    options = ("--data", photos, "--set", "bucket=my-own-bucket")
    status, _, err = call(capsys, "upsert", *CONFIG, *options)
    assert status == 2
    assert "bucket my-own-bucket does not exist" in err
    client("s3").create_bucket(Bucket="my-own-bucket")
    status, answer, _ = call(capsys, "upsert", *CONFIG, *options)
    assert status == 0
    assert answer["code"].startswith("s3://my-own-bucket/digits-demo/code/")


def test_the_region_is_the_profiles_unless_the_settings_name_one(
    aws: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    assert "eu-west-1" in call(capsys, "upsert", *CONFIG)[1]["pipeline_arn"]
    assert "us-west-2" in call(capsys, "upsert", *CONFIG, "--set", "region=us-west-2")[1]["pipeline_arn"]


def test_another_account_than_the_credentials_is_refused(aws: None, capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = call(capsys, "upsert", *CONFIG, "--set", "account=999999999999")
    assert status == 2
    assert f"account = 999999999999, but the credentials belong to account {ACCOUNT}" in err


def test_without_credentials_it_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    status, _, err = call(capsys, "upsert", *CONFIG)
    assert status == 2
    assert "AWS cannot be reached with your credentials" in err
    assert "--local" in err
