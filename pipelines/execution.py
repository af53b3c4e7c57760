"""What can be read of an execution, over the API: its steps, their jobs, logs and figures."""

import contextlib
import datetime
import io
import json
import math
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from botocore.exceptions import ClientError

from pipelines.contract import ACCURACY_PATH, EVALUATION_FILE, METRIC_REGEX, TEST_LOSS_PATH
from pipelines.errors import UserError, is_missing
from pipelines.place import Place
from pipelines.staging import split_uri

ENDED = ("Succeeded", "Failed", "Stopped")
GROUPS = {"ProcessingJob": "/aws/sagemaker/ProcessingJobs", "TrainingJob": "/aws/sagemaker/TrainingJobs"}
_PROGRESS = r"^.*\d+ of \d+.*/s$"
_TAIL = 100  # log lines in which a figure is looked for


@dataclass
class Step:
    """One step of an execution, whether it has run or not."""

    name: str
    type: str
    status: str = "Waiting"
    seconds: float | None = None
    """Since it started, or from its start to its end."""
    reason: str = ""
    """Why it failed."""
    metadata: dict[str, Any] = field(default_factory=dict)
    figure: str = ""
    """Its last metric, or how far it is."""
    source: str = ""
    """ARN of the earlier execution whose result was reused, if one was."""

    @property
    def cached(self) -> bool:
        """Whether an earlier execution's result was reused."""
        return bool(self.source)

    @property
    def job(self) -> tuple[str, str] | None:
        """(`ProcessingJob`, `TrainingJob` or `TuningJob`, its name), if it runs one."""
        for kind in ("ProcessingJob", "TrainingJob", "TuningJob"):
            if kind in self.metadata:
                return kind, self.metadata[kind]["Arn"].rsplit("/", 1)[1]
        return None

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        seconds = None if self.seconds is None else round(self.seconds, 1)
        row = {"name": self.name, "type": self.type, "status": self.status, "seconds": seconds, "figure": self.figure}
        if self.cached:
            row["reused_from"] = self.source
        return {**row, "failure_reason": self.reason} if self.reason else row


class Execution:
    """One execution; ask again, and it may have moved on."""

    def __init__(self, place: Place, arn: str) -> None:
        self.place, self.arn = place, arn
        self.id = arn.rsplit("/", 1)[1]
        self.pipeline = arn.split("/")[1]
        self._sagemaker, self._logs = place.client("sagemaker"), place.client("logs")
        self._planned: list[tuple[str, str]] | None = None
        self._figures: dict[str, str] = {}
        """Of steps that have ended."""

    @property
    def outputs(self) -> str:
        """The prefix of everything its steps wrote, as `steps.context` has it."""
        settings = self.place.settings.model_copy(update={"name": self.pipeline})
        return f"{settings.base_uri}/executions/{self.id}"

    def describe(self) -> dict[str, Any]:
        """DescribePipelineExecution."""
        answer: dict[str, Any] = self._sagemaker.describe_pipeline_execution(PipelineExecutionArn=self.arn)
        return answer

    def steps(self, figures: bool = True) -> list[Step]:
        """All steps of the definition, in its order."""
        if self._planned is None:
            answer = self._sagemaker.describe_pipeline_definition_for_execution(PipelineExecutionArn=self.arn)
            self._planned = list(_names(json.loads(answer["PipelineDefinition"])["Steps"]))
        pages = self._sagemaker.get_paginator("list_pipeline_execution_steps").paginate(PipelineExecutionArn=self.arn)
        seen = {step["StepName"]: step for page in pages for step in page["PipelineExecutionSteps"]}
        steps = [self._step(name, kind, seen.get(name)) for name, kind in self._planned]
        if figures:
            for step in steps:
                step.figure = self._figure(step)
        return steps

    def _step(self, name: str, kind: str, seen: dict[str, Any] | None) -> Step:
        if seen is None:
            return Step(name, kind)
        start, end = seen.get("StartTime"), seen.get("EndTime")
        seconds = None
        if start is not None:
            seconds = ((end or datetime.datetime.now(start.tzinfo)) - start).total_seconds()
        reason = " ".join(seen.get("FailureReason", "").split())
        source = seen.get("CacheHitResult", {}).get("SourcePipelineExecutionArn", "")
        return Step(name, kind, seen["StepStatus"], seconds, reason, seen.get("Metadata", {}), source=source)

    # --- figures

    def _figure(self, step: Step) -> str:
        if step.name in self._figures:
            return self._figures[step.name]
        figure = self._look(step) if step.metadata else ""
        if step.status in ENDED:
            self._figures[step.name] = figure
        return figure

    def _look(self, step: Step) -> str:
        if "Condition" in step.metadata:
            return {"True": "yes", "False": "no"}.get(step.metadata["Condition"].get("Outcome", ""), "")
        if "RegisterModel" in step.metadata:
            return f"version {step.metadata['RegisterModel']['Arn'].rsplit('/', 1)[1]}"
        if "Endpoint" in step.metadata:
            return str(step.metadata["Endpoint"]["Arn"].rsplit("/", 1)[1])
        if step.job is None:
            return ""
        kind, name = step.job
        if kind == "TuningJob":
            return self._tuning_figure(name)
        lines = self.tail(kind, name, _TAIL)
        metrics = [found[0] for regex in METRIC_REGEX.values() if (found := _last(regex, lines))]
        if metrics:
            return ", ".join(metrics)
        progress = _last(_PROGRESS, lines)
        return progress[0] if progress else ""

    def _tuning_figure(self, name: str) -> str:
        job = self._sagemaker.describe_hyper_parameter_tuning_job(HyperParameterTuningJobName=name)
        counters = job["TrainingJobStatusCounters"]
        done = sum(counters.get(key, 0) for key in ("Completed", "NonRetryableError", "Stopped"))
        text = f"{done} of {done + counters.get('InProgress', 0) + counters.get('RetryableError', 0)} trials"
        planned = job["HyperParameterTuningJobConfig"]["ResourceLimits"].get("MaxNumberOfTrainingJobs")
        if planned:
            text = f"{done} of {planned} trials"
        if counters.get("Stopped"):
            text += f", {counters['Stopped']} of them stopped"
        best = job.get("BestTrainingJob", {}).get("FinalHyperParameterTuningJobObjectiveMetric")
        return f"{text}, best {best['MetricName']}: {best['Value']:.4f}" if best else text

    # --- logs

    def streams(self, kind: str, job: str) -> list[tuple[str, str]]:
        """(group, stream) of a job's logs; of a tuning job, those of all its trials."""
        if kind == "TuningJob":
            return [stream for trial in self.trials(job) for stream in self.streams("TrainingJob", trial["name"])]
        group = GROUPS[kind]
        try:
            pages = self._logs.get_paginator("describe_log_streams").paginate(
                logGroupName=group, logStreamNamePrefix=f"{job}/"
            )
            return [(group, stream["logStreamName"]) for page in pages for stream in page["logStreams"]]
        except self._logs.exceptions.ResourceNotFoundException:  # nothing was logged yet
            return []

    def tail(self, kind: str, job: str, count: int) -> list[str]:
        """The last lines of a job's log."""
        lines: list[str] = []
        for group, stream in self.streams(kind, job):
            with contextlib.suppress(self._logs.exceptions.ResourceNotFoundException):
                answer = self._logs.get_log_events(
                    logGroupName=group, logStreamName=stream, limit=count, startFromHead=False
                )
                lines += [event["message"].rstrip("\n") for event in answer["events"]]
        return lines[-count:]

    def log(self, group: str, stream: str) -> Iterator[str]:
        """All lines of a log stream."""
        token = None
        while True:
            more: dict[str, Any] = {"nextToken": token} if token else {}
            answer = self._logs.get_log_events(logGroupName=group, logStreamName=stream, startFromHead=True, **more)
            yield from (event["message"].rstrip("\n") for event in answer["events"])
            if answer["nextForwardToken"] == token:
                return
            token = answer["nextForwardToken"]

    # --- results

    def trials(self, job: str) -> list[dict[str, Any]]:
        """The tuner's trials: name, status, tuned hyperparameters, objective."""
        pages = self._sagemaker.get_paginator("list_training_jobs_for_hyper_parameter_tuning_job").paginate(
            HyperParameterTuningJobName=job, SortBy="CreationTime", SortOrder="Ascending"
        )
        return [
            {
                "name": trial["TrainingJobName"],
                "status": trial["TrainingJobStatus"],
                "hyperparameters": _plain(trial["TunedHyperParameters"]),
                "objective": trial.get("FinalHyperParameterTuningJobObjectiveMetric", {}).get("Value"),
            }
            for page in pages
            for trial in page["TrainingJobSummaries"]
        ]

    def results(self, steps: list[Step]) -> dict[str, Any]:
        """What came out; members whose step has not run are None."""
        found: dict[str, Any] = dict.fromkeys(
            ("best_hyperparameters", "objective", "trials", "test_loss", "accuracy", "gate", "test_loss_threshold",
             "model_package_arn", "approval_status", "endpoint_name", "random_weights")
        )  # fmt: skip
        by_name = {step.name: step for step in steps}
        tune, evaluate = by_name.get("Tune"), by_name.get("Evaluate")
        if tune and tune.job and tune.status in ENDED:
            job = self._sagemaker.describe_hyper_parameter_tuning_job(HyperParameterTuningJobName=tune.job[1])
            found["trials"] = self.trials(tune.job[1])
            best = job.get("BestTrainingJob", {})
            if best:
                found["best_hyperparameters"] = _plain(best["TunedHyperParameters"])
            found["objective"] = job["HyperParameterTuningJobConfig"]["HyperParameterTuningJobObjective"]["MetricName"]
        if evaluate and evaluate.job and evaluate.status == "Succeeded":
            report = json.loads(self.read(f"{self.output(evaluate, 'evaluation')}/{EVALUATION_FILE}"))
            found["test_loss"], found["accuracy"] = _at(report, TEST_LOSS_PATH), _at(report, ACCURACY_PATH)
            found["random_weights"] = _at(report, "model.weights.kind") == "random"
        if "Gate" in by_name and by_name["Gate"].figure:
            found["gate"] = "passed" if by_name["Gate"].figure == "yes" else "failed"
            found["test_loss_threshold"] = float(self.parameters()["TestLossThreshold"])
        if "Register" in by_name and "RegisterModel" in by_name["Register"].metadata:
            arn = by_name["Register"].metadata["RegisterModel"]["Arn"]
            package = self._sagemaker.describe_model_package(ModelPackageName=arn)
            found["model_package_arn"], found["approval_status"] = arn, package["ModelApprovalStatus"]
        if "Endpoint" in by_name and by_name["Endpoint"].status == "Succeeded":
            found["endpoint_name"] = self.parameters()["EndpointName"]
        return found

    def parameters(self) -> dict[str, str]:
        """The values this execution runs with, defaults included."""
        answer = self._sagemaker.describe_pipeline_definition_for_execution(PipelineExecutionArn=self.arn)
        declared = json.loads(answer["PipelineDefinition"])["Parameters"]
        values = {each["Name"]: str(each["DefaultValue"]) for each in declared if "DefaultValue" in each}
        pages = self._sagemaker.get_paginator("list_pipeline_parameters_for_execution").paginate(
            PipelineExecutionArn=self.arn
        )
        values.update({item["Name"]: item["Value"] for page in pages for item in page["PipelineParameters"]})
        return values

    def output(self, step: Step, name: str) -> str:
        """The URI of a processing step's output."""
        if step.job is None:
            raise UserError(f"step {step.name} has no outputs yet")
        job = self._sagemaker.describe_processing_job(ProcessingJobName=step.job[1])
        outputs = {item["OutputName"]: item["S3Output"]["S3Uri"] for item in job["ProcessingOutputConfig"]["Outputs"]}
        return str(outputs[name]).rstrip("/")

    def read(self, uri: str) -> bytes:
        """An object's content."""
        bucket, key = split_uri(uri)
        content: bytes = self.place.client("s3").get_object(Bucket=bucket, Key=key)["Body"].read()
        return content

    def test_photo(self, steps: list[Step]) -> tuple[str, bytes] | None:
        """(name, content) of a photo of the test side: the middle one of its first shard's first hundred."""
        split = next((step for step in steps if step.name == "Split" and step.status == "Succeeded"), None)
        if split is None:
            return None
        bucket, key = split_uri(f"{self.output(split, 'test')}/shard-00000.tar")
        body = self.place.client("s3").get_object(Bucket=bucket, Key=key)["Body"]
        photos: list[tuple[str, bytes]] = []
        # Read as a stream: a shard may hold 150 MB, and a few photos of it are enough.
        with contextlib.closing(body), tarfile.open(fileobj=io.BufferedReader(body), mode="r|") as tar:
            for member in tar:
                content = tar.extractfile(member)
                if content is not None:
                    photos.append((member.name, content.read()))
                if len(photos) == 100:
                    break
        return photos[len(photos) // 2]


def _names(steps: list[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    for step in steps:
        yield step["Name"], step["Type"]
        if step["Type"] == "Condition":
            yield from _names(step["Arguments"]["IfSteps"])
            yield from _names(step["Arguments"]["ElseSteps"])


def _last(regex: str, lines: list[str]) -> re.Match[str] | None:
    """The last line's match."""
    return next((found for line in reversed(lines) if (found := re.search(regex, line))), None)


def _plain(hyperparameters: dict[str, str]) -> dict[str, Any]:
    """Numbers as numbers; the tuner quotes categorical values."""
    plain: dict[str, Any] = {}
    for name, text in sorted(hyperparameters.items()):
        try:
            number = float(text.strip('\\"'))
            plain[name] = int(number) if number.is_integer() and math.isfinite(number) else number
        except ValueError:
            plain[name] = text
    return plain


def _at(report: Any, path: str) -> Any:
    for part in path.split("."):
        report = report[part]
    return report


def no_pipeline(name: str, error: ClientError) -> Exception:
    """What to raise when a call about a pipeline fails."""
    if is_missing(error):
        return UserError(f"there is no pipeline {name}; run `upsert` first, or name another with --config")
    return error


def latest(place: Place, pipeline: str | None) -> str:
    """ARN of the newest execution, of one pipeline or of all of them.

    Raises:
        UserError: there is none.
    """
    sagemaker = place.client("sagemaker")
    if pipeline is None:
        pages = sagemaker.get_paginator("list_pipelines").paginate()
        names = [each["PipelineName"] for page in pages for each in page["PipelineSummaries"]]
    else:
        names = [pipeline]
    newest: list[Any] = []
    for name in names:
        try:
            found = sagemaker.list_pipeline_executions(PipelineName=name, SortOrder="Descending", MaxResults=1)
        except ClientError as error:
            raise no_pipeline(name, error) from None
        newest += [(each["StartTime"], each["PipelineExecutionArn"]) for each in found["PipelineExecutionSummaries"]]
    if not newest:
        what = f"pipeline {pipeline} has no execution" if pipeline else "there is no execution"
        raise UserError(f"{what} yet; begin one with `start` or `run`")
    return str(max(newest)[1])
