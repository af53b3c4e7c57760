"""The pipeline as a user runs it: the real command line, the real scripts, real photos, SageMaker on this machine."""

import io
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest
import torch
import torchvision
from PIL import Image

from pipelines.contract import ROOT
from pipelines.local import service

LOCAL = {"aws_access_key_id": "local", "aws_secret_access_key": "local", "region_name": "us-east-1"}
STEPS = ["Split", "Embed", "Tune", "Train", "Evaluate", "Gate", "Register", "Approved", "Model", "EndpointConfig",
         "Endpoint"]  # fmt: skip
# What runs in seconds, where accuracy is not the point.
QUICK = ("--config", "configs/demo.yaml", "--set", "image_size=32", "--set", "epochs=4", "--set", "trials=2")


@dataclass(frozen=True)
class Answer:
    """How a command ended."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def errors(self) -> list[str]:
        return [line for line in self.err.splitlines() if line.startswith("error: ")]


class CommandLine:
    """`run.py --local` on a state directory of the tests' own; nothing of the user's environment that matters."""

    def __init__(self, state: Path) -> None:
        self.state = state

    def __call__(self, *arguments: object) -> Answer:
        hidden = ("AWS_", "SAGEMAKER_", "SM_")
        env = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
        process = subprocess.run(
            [sys.executable, "pipelines/run.py", "--local", *map(str, arguments)],
            cwd=ROOT,
            env={**env, "SAGEMAKER_LOCAL_DIR": str(self.state), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=500,
        )
        return Answer(process.returncode, process.stdout, process.stderr)

    def client(self, name: str) -> Any:
        return boto3.client(name, endpoint_url=service.ensure_running(self.state), **LOCAL)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandLine]:
    state = tmp_path_factory.mktemp("state")
    yield CommandLine(state)
    service.stop(state)


@pytest.fixture(scope="module")
def demo(run: CommandLine, digits: Path) -> dict[str, Any]:
    """What `make demo` runs; `took` is how many seconds."""
    begun = time.monotonic()
    answer = run("--json", "run", "--config", "configs/demo.yaml", "--data", digits)
    assert answer.status == 0, answer.err
    return {**answer.json, "took": time.monotonic() - begun}


# --- the demo


def test_every_step_runs_and_the_digits_are_told_apart(demo: dict[str, Any]) -> None:
    states = {step["name"]: step["status"] for step in demo["steps"]}
    assert demo["status"] == "Succeeded"
    assert [name for name in states if states[name] == "Succeeded"] == STEPS
    assert states["GateFailed"] == "Waiting"
    assert demo["accuracy"] >= 0.97
    assert demo["random_weights"] is True
    assert demo["gate"] == "passed"
    assert demo["test_loss"] <= demo["test_loss_threshold"] == 0.25


def test_the_best_trial_is_the_best_and_train_gets_its_values(run: CommandLine, demo: dict[str, Any]) -> None:
    best = min(demo["trials"], key=lambda trial: trial["objective"])
    assert len(demo["trials"]) == 4
    assert demo["best_hyperparameters"] == best["hyperparameters"]
    log = run("logs", "Train", demo["execution_arn"]).out
    assert (
        f"hyperparameters: lr={best['hyperparameters']['lr']} batch-size={best['hyperparameters']['batch-size']} "
        in log
    )
    # The head is the trial's, bit for bit: so is its validation loss.
    assert f"average validation loss: {best['objective']:.6f}" in log


def test_the_package_is_registered_with_its_evaluation(run: CommandLine, demo: dict[str, Any]) -> None:
    package = run.client("sagemaker").describe_model_package(ModelPackageName=demo["model_package_arn"])
    assert package["ModelApprovalStatus"] == demo["approval_status"] == "Approved"
    assert package["ModelPackageGroupName"] == "digits-demo"
    bucket, key = package["ModelMetrics"]["ModelQuality"]["Statistics"]["S3Uri"].removeprefix("s3://").split("/", 1)
    report = json.loads(run.client("s3").get_object(Bucket=bucket, Key=key)["Body"].read())
    assert report["multiclass_classification_metrics"]["accuracy"]["value"] == demo["accuracy"]


def test_the_endpoint_answers_boto3_and_the_command_line(run: CommandLine, demo: dict[str, Any], digits: Path) -> None:
    assert run.client("sagemaker").describe_endpoint(EndpointName="digits-demo")["EndpointStatus"] == "InService"
    assert demo["prediction"]["label"] == demo["prediction"]["photo"].split("/")[0]
    photos = [next(iter(sorted(folder.iterdir()))) for folder in sorted(digits.iterdir())]
    answer = run("--json", "predict", *photos)
    assert answer.status == 0
    labels = [each["label"] for each in answer.json["predictions"]]
    assert sum(label == photo.parent.name for label, photo in zip(labels, photos, strict=True)) >= 9
    lines = run("predict", photos[0], photos[1]).out.splitlines()
    assert lines[0].startswith(f"{photos[0]}: {labels[0]} ")
    assert len(lines) == 2


def test_predict_tells_what_is_wrong_and_answers_the_rest(run: CommandLine, demo: dict[str, Any], digits: Path) -> None:
    photo = next(digits.glob("*/*.png"))
    answer = run("--json", "predict", ROOT / "setup.py", photo, "nosuch.jpg")
    assert answer.status == 2
    assert len(answer.json["predictions"]) == 1
    assert len(answer.errors) == 2
    assert "not a JPEG, PNG or WebP image" in answer.errors[0]
    assert "nosuch.jpg cannot be read" in answer.errors[1]
    assert "there is no endpoint nosuch; there are: digits-demo" in run("predict", "--endpoint", "nosuch", photo).err


def test_status_list_and_logs(run: CommandLine, demo: dict[str, Any]) -> None:
    arn, name = demo["execution_arn"], demo["execution_arn"].rsplit("/", 1)[1]
    assert run("--json", "status", name).json["accuracy"] == demo["accuracy"]
    text = run("status", arn).out
    assert f"average test loss: {demo['test_loss']:.6f}" in text
    assert arn in [each["execution_arn"] for each in run("--json", "list").json["executions"]]
    trials = run("logs", "tune", name).out
    assert trials.count("==>") == 4
    assert run("logs", "Nosuch", name).errors[0].endswith("Model, EndpointConfig, Endpoint")
    assert run("stop", name).errors == [f"error: execution {name} has ended already: Succeeded"]


def test_the_debugger_and_the_profiler_leave_their_files(run: CommandLine, demo: dict[str, Any]) -> None:
    outputs = Path(demo["outputs_folder"])
    archive = next((outputs / "train").glob("*/output/output.tar.gz"))
    shutil.unpack_archive(archive, outputs.parent / "unpacked", filter="data")
    files = [
        path.relative_to(outputs.parent / "unpacked").as_posix() for path in (outputs.parent / "unpacked").rglob("*")
    ]
    assert any(name.startswith("debug/collections/") for name in files)
    assert any(name.startswith("profiler/system/incremental/") for name in files)


def test_a_second_run_on_the_same_photos_reuses_every_job(run: CommandLine, demo: dict[str, Any], digits: Path) -> None:
    begun = time.monotonic()
    answer = run("run", "--config", "configs/demo.yaml", "--data", digits)
    took = time.monotonic() - begun
    assert answer.status == 0, answer.err
    lines = answer.err.splitlines()
    assert [line.split()[0] for line in lines if "Succeeded (cached)" in line] == STEPS[:5]
    assert f"Split, Embed, Tune, Train, Evaluate: as execution {demo['execution_arn'].split('/')[-1]}" in answer.out
    assert took < demo["took"] / 2
    # What was reused can be looked at like the step's own.
    status = run("--json", "status").json
    assert status["execution_arn"] != demo["execution_arn"]
    assert (status["accuracy"], status["trials"]) == (demo["accuracy"], demo["trials"])
    assert f"average test loss: {demo['test_loss']:.6f}" in run("logs", "evaluate").out


# --- what ends otherwise


def test_a_gate_that_is_not_passed_registers_nothing(run: CommandLine, few_digits: Path) -> None:
    common = (*QUICK, "--set", "name=gate", "--set", "endpoint_name=gate")
    answer = run("--json", "run", *common, "--data", few_digits, "-p", "TestLossThreshold=0.01")
    assert answer.status == 1
    result = answer.json
    assert result["status"] == "Failed"
    assert result["gate"] == "failed"
    assert result["model_package_arn"] is None
    assert result["endpoint_name"] is None
    states = {step["name"]: step["status"] for step in result["steps"]}
    assert states["GateFailed"] == "Failed"
    assert states["Register"] == states["Model"] == states["Endpoint"] == "Waiting"
    message = answer.errors[0]
    assert f"test loss {result['test_loss']} is above TestLossThreshold 0.01" in message
    assert run.client("sagemaker").list_model_packages(ModelPackageGroupName="gate")["ModelPackageSummaryList"] == []


def test_a_package_that_waits_for_approval_is_not_deployed(run: CommandLine, few_digits: Path) -> None:
    """And so do the managed debugger's form, fine-tuning on two hosts, views, Hyperband and a test-loss objective."""
    options = ("--set", "name=waits", "--set", "debugger=managed", "--set", "objective=average test loss",
               "--set", "fine_tune_epochs=1", "--set", "test_loss_threshold=9", "--set", "augmented_views=1",
               "--set", "strategy=Hyperband", "--set", "label_smoothing=[0, 0.1]")  # fmt: skip
    parameters = ("-p", "ApprovalStatus=PendingManualApproval", "-p", "Trainable=all", "-p", "TrainingInstanceCount=2")
    answer = run("run", *QUICK, *options, "--data", few_digits, *parameters)
    assert answer.status == 0, answer.err
    assert "Not deployed: ApprovalStatus is PendingManualApproval" in answer.out
    log = run("logs", "Train", "--config", "configs/demo.yaml", "--set", "name=waits").out
    assert "of fine-tuning" in log
    assert "views=1" in log
    assert list(run.state.glob("s3/*/waits/checkpoints/*"))
    endpoints = run.client("sagemaker").list_endpoints(NameContains="waits")["Endpoints"]
    assert endpoints == []


def spoil(source: Path, target: Path, every: int) -> Path:
    """A copy in which every so manieth photo is one that cannot be read: cut short, text, or absurdly large."""
    shutil.copytree(source, target)
    good = io.BytesIO()
    Image.effect_noise((300, 300), 80).save(good, "JPEG")
    huge = io.BytesIO()
    Image.new("1", (50_000, 50_000)).save(huge, "PNG")
    bad = [good.getvalue()[:5000], b"this is no photo", huge.getvalue()]
    for number, path in enumerate(sorted(target.glob("*/*.png"))[::every]):
        path.unlink()
        path.with_suffix(".jpg").write_bytes(bad[number % 3])
    return target


def test_a_few_unreadable_photos_are_set_aside_and_listed(run: CommandLine, few_digits: Path, tmp_path: Path) -> None:
    data = spoil(few_digits, tmp_path / "photos", every=40)
    options = (*QUICK, "--set", "name=spoilt", "--set", "endpoint_name=spoilt", "--set", "test_loss_threshold=9")
    answer = run("--json", "run", *options, "--data", data)
    assert answer.status == 0, answer.err
    report = json.loads((Path(answer.json["outputs_folder"]) / "split/report/split.json").read_text())
    reasons = " ".join(each["reason"] for each in report["unreadable"])
    assert len(report["unreadable"]) == 10
    assert "truncated" in reasons
    assert "not a JPEG, PNG or WebP image" in reasons
    assert "50000x50000 pixels" in reasons


def test_bad_data_and_weights_fail_in_their_step_with_the_reason(
    run: CommandLine, few_digits: Path, tmp_path: Path
) -> None:
    spoilt = spoil(few_digits, tmp_path / "spoilt", every=10)
    one = tmp_path / "one"
    shutil.copytree(few_digits / "3", one / "3")
    other = tmp_path / "other.pth"
    torch.save(torchvision.models.squeezenet1_1().state_dict(), other)
    for step, reason, options in (
        ("Split", "40 of 400 photos are unreadable", ("--data", spoilt)),
        ("Split", "the dataset has one class only, 3", ("--data", one)),
        ("Embed", "the weights other.pth are not those of resnet18", ("--data", few_digits, "--weights", other)),
    ):
        answer = run("run", *QUICK, "--set", "name=bad", *options)
        assert answer.status == 1
        assert len(answer.errors) == 1
        assert answer.errors[0].startswith(f"error: step {step} failed: ")
        assert reason in answer.errors[0]
        assert f"the end of {step}'s log:" in answer.err
        assert "Traceback" not in answer.err


def test_stop_and_start_without_waiting(run: CommandLine, few_digits: Path) -> None:
    config = ("--config", "configs/demo.yaml", "--set", "name=stopped")
    assert run("upsert", *config, "--data", few_digits).status == 0
    started = run("--json", "start", *config, "-p", "Epochs=1000").json["execution_arn"]
    assert run("--json", "stop", started).json["status"] == "Stopping"
    sagemaker = run.client("sagemaker")
    for _ in range(600):
        state = sagemaker.describe_pipeline_execution(PipelineExecutionArn=started)["PipelineExecutionStatus"]
        if state == "Stopped":
            break
        time.sleep(0.1)
    assert state == "Stopped"
    text = run("status", started).out
    assert "Stopped" in text
