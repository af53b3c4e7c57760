"""Small definitions and scripts: jobs that end in tenths of a second."""

import io
import json
import tarfile
import time
from dataclasses import dataclass
from typing import Any

import boto3
from botocore.config import Config

BUCKET = "sagemaker-us-east-1-000000000000"
ROLE = "arn:aws:iam::000000000000:role/SageMaker"
OUT = f"s3://{BUCKET}/out"
IMAGE = "000000000000.dkr.ecr.us-east-1.amazonaws.com/pytorch:2.12"
ENDED = ("Succeeded", "Failed", "Stopped")


def client(name: str, url: str, **config: Any) -> Any:
    """A boto3 client of the service; it does not retry, so that an error is seen as it is."""
    keys = {"aws_access_key_id": "local", "aws_secret_access_key": "local", "region_name": "us-east-1"}
    options = Config(retries={"total_max_attempts": 1}, **config)
    return boto3.client(name, endpoint_url=url, config=options, **keys)


@dataclass(frozen=True)
class Clients:
    """boto3's clients, all on the one address."""

    url: str

    def __post_init__(self) -> None:
        for attribute, name in (("sm", "sagemaker"), ("s3", "s3"), ("logs", "logs"), ("runtime", "sagemaker-runtime")):
            object.__setattr__(self, attribute, client(name, self.url))

    def put(self, key: str, body: bytes | str) -> str:
        """An object in the default bucket; its URI."""
        self.s3.put_object(Bucket=BUCKET, Key=key, Body=body)  # type: ignore[attr-defined]
        return f"s3://{BUCKET}/{key}"

    def get(self, uri: str) -> bytes:
        """An object's content."""
        bucket, _, key = uri.removeprefix("s3://").partition("/")
        return self.s3.get_object(Bucket=bucket, Key=key)["Body"].read()  # type: ignore[attr-defined]

    def keys(self, prefix: str) -> list[str]:
        """The keys below a prefix of the default bucket, without it."""
        found = self.s3.list_objects_v2(Bucket=BUCKET, Prefix=prefix).get("Contents", [])  # type: ignore[attr-defined]
        return [item["Key"].removeprefix(prefix) for item in found]

    def start(self, definition: dict[str, Any], name: str, **parameters: str) -> str:
        """Create (or update) a pipeline and start it; the execution's ARN."""
        text = json.dumps(definition)
        try:
            self.sm.create_pipeline(PipelineName=name, PipelineDefinition=text, RoleArn=ROLE)  # type: ignore[attr-defined]
        except self.sm.exceptions.ClientError as error:  # type: ignore[attr-defined]
            if "already exists" not in str(error):
                raise
            self.sm.update_pipeline(PipelineName=name, PipelineDefinition=text)  # type: ignore[attr-defined]
        given = [{"Name": key, "Value": value} for key, value in parameters.items()]
        answer = self.sm.start_pipeline_execution(PipelineName=name, PipelineParameters=given)  # type: ignore[attr-defined]
        return str(answer["PipelineExecutionArn"])

    def wait(self, arn: str, timeout: float = 60) -> dict[str, Any]:
        """The execution once it has ended."""
        return until(
            lambda: self.sm.describe_pipeline_execution(PipelineExecutionArn=arn),  # type: ignore[attr-defined]
            lambda answer: answer["PipelineExecutionStatus"] in ENDED,
            timeout,
        )

    def steps(self, arn: str) -> dict[str, dict[str, Any]]:
        """The steps that have run, by name."""
        answer = self.sm.list_pipeline_execution_steps(PipelineExecutionArn=arn)  # type: ignore[attr-defined]
        return {step["StepName"]: step for step in answer["PipelineExecutionSteps"]}

    def run(self, definition: dict[str, Any], name: str, **parameters: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """Start and wait; the execution and its steps."""
        arn = self.start(definition, name, **parameters)
        return self.wait(arn), self.steps(arn)

    def log(self, group: str, job: str) -> str:
        """All of a job's log."""
        streams = self.logs.describe_log_streams(logGroupName=group, logStreamNamePrefix=f"{job}/")  # type: ignore[attr-defined]
        lines = []
        for stream in streams["logStreams"]:
            answer = self.logs.get_log_events(  # type: ignore[attr-defined]
                logGroupName=group, logStreamName=stream["logStreamName"], startFromHead=True
            )
            lines += [event["message"] for event in answer["events"]]
        return "\n".join(lines)


def until(look: Any, ended: Any, timeout: float = 60) -> Any:
    """Look until it has ended."""
    deadline = time.monotonic() + timeout
    while True:
        answer = look()
        if ended(answer):
            return answer
        if time.monotonic() > deadline:
            raise TimeoutError(f"still {answer}")
        time.sleep(0.05)


def get(path: str) -> dict[str, str]:
    return {"Get": path}


def join(*values: Any, on: str = "") -> dict[str, Any]:
    return {"Std:Join": {"On": on, "Values": list(values)}}


def json_get(step: str, file: str, path: str) -> dict[str, Any]:
    return {"Std:JsonGet": {"PropertyFile": get(f"Steps.{step}.PropertyFiles.{file}"), "Path": path}}


def pipeline(steps: list[Any], parameters: list[Any] | None = None) -> dict[str, Any]:
    return {"Version": "2020-12-01", "Metadata": {}, "Parameters": parameters or [], "Steps": steps}


def processing(
    name: str, code: str, inputs: dict[str, Any] | None = None, outputs: dict[str, Any] | None = None, **more: Any
) -> dict[str, Any]:
    """A processing step that runs `code`, with its inputs' and outputs' folders as arguments.

    `code` is one line of Python, or the URI of a script.
    """
    command = ["-c", code]
    arguments = [f"/opt/ml/processing/input/{key}" for key in inputs or {}]
    arguments += [f"/opt/ml/processing/{key}" for key in outputs or {}]
    if code.startswith("s3://"):
        command = [f"/opt/ml/processing/input/code/{code.rsplit('/', 1)[-1]}"]
        inputs = {**(inputs or {}), "code": code}
    sources = [
        {
            "InputName": key,
            "S3Input": {
                "S3Uri": uri,
                "LocalPath": f"/opt/ml/processing/input/{key}",
                "S3DataType": "S3Prefix",
                "S3InputMode": "File",
            },
        }
        for key, uri in (inputs or {}).items()
    ]
    results = [
        {
            "OutputName": key,
            "S3Output": {"S3Uri": uri, "LocalPath": f"/opt/ml/processing/{key}", "S3UploadMode": "EndOfJob"},
        }
        for key, uri in (outputs or {}).items()
    ]
    request: dict[str, Any] = {
        "ProcessingResources": {
            "ClusterConfig": {"InstanceType": "ml.m5.xlarge", "InstanceCount": 1, "VolumeSizeInGB": 30}
        },
        "AppSpecification": {
            "ImageUri": IMAGE,
            "ContainerEntrypoint": ["python3", *command],
            "ContainerArguments": more.pop("arguments", arguments) or ["-"],
        },
        "RoleArn": ROLE,
    }
    if sources:
        request["ProcessingInputs"] = sources
    if results:
        request["ProcessingOutputConfig"] = {"Outputs": results}
    request |= more.pop("request", {})
    return {"Name": name, "Type": "Processing", "Arguments": request, **more}


def cached(step: dict[str, Any], expire_after: str = "P1D") -> dict[str, Any]:
    return {**step, "CacheConfig": {"Enabled": True, "ExpireAfter": expire_after}}


def bundle(**files: str) -> bytes:
    """A sourcedir.tar.gz; `train="…"` becomes train.py."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, text in files.items():
            member = tarfile.TarInfo(name if "." in name else f"{name}.py")
            member.size = len(text.encode())
            archive.addfile(member, io.BytesIO(text.encode()))
    return buffer.getvalue()


def training_request(code: str, program: str = "train.py", **hyperparameters: Any) -> dict[str, Any]:
    """A CreateTrainingJob request, but for its name."""
    return {
        "AlgorithmSpecification": {
            "TrainingImage": IMAGE,
            "TrainingInputMode": "File",
            "MetricDefinitions": [{"Name": "loss", "Regex": "loss: ([0-9.]+)"}],
        },
        "HyperParameters": {
            "sagemaker_program": program,
            "sagemaker_submit_directory": code,
            **hyperparameters,
        },
        "RoleArn": ROLE,
        "OutputDataConfig": {"S3OutputPath": OUT},
        "ResourceConfig": {"InstanceType": "ml.m5.xlarge", "InstanceCount": 1, "VolumeSizeInGB": 30},
        "StoppingCondition": {"MaxRuntimeInSeconds": 3600},
    }


def channel(name: str, uri: Any) -> dict[str, Any]:
    source = {"S3DataType": "S3Prefix", "S3Uri": uri, "S3DataDistributionType": "FullyReplicated"}
    return {"ChannelName": name, "DataSource": {"S3DataSource": source}, "InputMode": "File"}


def tuning_request(code: str, ranges: dict[str, Any], jobs: int | None = 4, **more: Any) -> dict[str, Any]:
    """A CreateHyperParameterTuningJob request, but for its name."""
    request = training_request(code, more.pop("program", "hpo.py"))
    static = request.pop("HyperParameters")
    limits = {"MaxParallelTrainingJobs": more.pop("parallel", 2)}
    if jobs is not None:
        limits["MaxNumberOfTrainingJobs"] = jobs
    return {
        "HyperParameterTuningJobConfig": {
            "Strategy": more.pop("strategy", "Bayesian"),
            "ResourceLimits": limits,
            "HyperParameterTuningJobObjective": {"Type": more.pop("goal", "Minimize"), "MetricName": "loss"},
            "ParameterRanges": ranges,
            **more,
        },
        "TrainingJobDefinition": {**request, "StaticHyperParameters": static},
    }


INFERENCE = """
import json, os

class BadRequest(Exception):
    def __init__(self, message, status=400):
        super().__init__(message)
        self.status = status

def model_fn(model_dir):
    with open(os.path.join(model_dir, "weight.txt")) as file:
        return float(file.read())

def input_fn(body, content_type):
    if content_type != "application/json":
        raise BadRequest(f"send application/json, not {content_type}", 415)
    return json.loads(body)

def predict_fn(data, model):
    if data == "die":
        os._exit(3)
    return data["x"] * model

def output_fn(prediction, accept):
    return json.dumps({"y": prediction, "accept": accept}), "application/json"
"""


def model_archive(weight: float, inference: str = INFERENCE) -> bytes:
    """A model.tar.gz that multiplies by `weight`."""
    return bundle(**{"weight.txt": str(weight), "code/inference.py": inference})
