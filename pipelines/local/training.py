"""Training jobs: what SageMaker does around the training toolkit.

Channels are linked into /opt/ml/input/data, the configuration files written, the toolkit started (`toolkit.py`, in a
process of its own); afterwards the model, the output data, tensors and checkpoints go to the object store.

A job of several instances is as many processes, each with an /opt/ml of its own: algo-1, algo-2, … What they leave is
merged; where several leave a file of the same name, that of the first counts. Their names can not be looked up here as
they can in SageMaker's network: SM_MASTER_ADDR and SM_MASTER_PORT say where they can meet.
"""

import json
import os
import re
import socket
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipelines.local import checkpoints, container, logs, objects
from pipelines.local.container import Container
from pipelines.local.errors import JobError, ServiceError, in_use, invalid
from pipelines.local.machine import Machine, Task
from pipelines.local.names import arn
from pipelines.local.processing import found
from pipelines.local.store import Document, Exists

KIND = "training-job"
Observer = Callable[[str, float], None]
"""Told of each new value of a metric, in the order they are logged, while the job runs: its name and the value."""
_TOOLKIT = Path(__file__).with_name("toolkit.py")
_LONGEST_REASON = 1024
_DEFAULT_RUNTIME = 86_400  # seconds: AWS' own default
_STATUS_MESSAGES = {
    "Starting": "Preparing the instances for training",
    "Downloading": "Downloading input data",
    "Training": "Training is in progress",
    "Uploading": "Uploading generated training model",
    "Stopping": "Stopping the training job",
    "Completed": "Training job completed",
    "Failed": "Training job failed",
    "Stopped": "Training job stopped",
    "MaxRuntimeExceeded": "Training job runtime exceeded MaxRuntimeInSeconds provided",
}


def create(
    machine: Machine,
    request: dict[str, Any],
    trial: Document | None = None,
    observe: Observer = lambda name, value: None,
) -> dict[str, Any]:
    """CreateTrainingJob: note the job and start it.

    Args:
        machine: where it runs.
        request: the API's.
        trial: for a trial of a tuning job: what to keep beside it (its `TuningJobName`, `TunedHyperParameters`, …).
        observe: for a trial: who follows its metrics.

    Raises:
        ServiceError: a job of that name exists, or the request lacks what a job here needs.
    """
    for key in ("AlgorithmSpecification", "ResourceConfig"):
        if key not in request:
            raise invalid(f"{key} is required on this machine")
    name = request["TrainingJobName"]
    job_arn = arn(KIND, name)
    document = {
        "StoppingCondition": {"MaxRuntimeInSeconds": _DEFAULT_RUNTIME},
        **request,
        **(trial or {}),
        "TrainingJobArn": job_arn,
        "TrainingJobStatus": "InProgress",
        "SecondaryStatusTransitions": [],
        "ModelArtifacts": {"S3ModelArtifacts": _model_uri(request)},
        # AWS takes these on trust as well and reports on them; nobody evaluates them here yet.
        **_rule_statuses(request),
    }
    _enter(document, "Starting")
    try:
        machine.store.create(KIND, name, document, parent=(trial or {}).get("TuningJobName", ""))
    except Exists:
        raise in_use(f"Training job names must be unique: {job_arn} exists already") from None
    machine.start(KIND, name, lambda task: _run(machine, task, observe))
    return {"TrainingJobArn": job_arn}


def _model_uri(job: dict[str, Any]) -> str:
    """Where the model will be, if the job leaves one."""
    output = job["OutputDataConfig"]
    folder = f"{output['S3OutputPath'].rstrip('/')}/{job['TrainingJobName']}/output"
    return f"{folder}/model/" if output.get("CompressionType") == "NONE" else f"{folder}/model.tar.gz"


def _rule_statuses(request: dict[str, Any]) -> Document:
    statuses = {}
    for kind in ("Debug", "Profiler"):
        rules = request.get(f"{kind}RuleConfigurations", [])
        if rules:
            statuses[f"{kind}RuleEvaluationStatuses"] = [
                {
                    "RuleConfigurationName": rule["RuleConfigurationName"],
                    "RuleEvaluationStatus": "Stopped",
                    "StatusDetails": "Managed rules are not evaluated on this machine.",
                    "LastModifiedTime": time.time(),
                }
                for rule in rules
            ]
    return statuses


def _enter(document: Document, status: str, message: str = "") -> None:
    """Go on to the next secondary status; the one before ends now."""
    now = time.time()
    transitions = document["SecondaryStatusTransitions"]
    if transitions:
        transitions[-1].setdefault("EndTime", now)
    transitions.append({"Status": status, "StartTime": now, "StatusMessage": message or _STATUS_MESSAGES[status]})
    if status in ("Completed", "Failed", "Stopped", "MaxRuntimeExceeded"):
        transitions[-1]["EndTime"] = now
    document["SecondaryStatus"] = status


def _run(machine: Machine, task: Task, observe: Observer) -> None:
    status, secondary, reason = "Failed", "Failed", ""
    try:
        job = machine.store.get(KIND, task.name)
        hosts = [f"algo-{n}" for n in range(1, job["ResourceConfig"].get("InstanceCount", 1) + 1)]
        with machine.slots.hold(task, len(hosts)) as got:
            if got:
                status, secondary, reason = _work(machine, task, job, hosts, observe)
            else:
                status, secondary, reason = "Stopped", "Stopped", task.reason
    except JobError as error:
        reason = str(error)
    except (ServiceError, OSError) as error:
        reason = f"ClientError: {error}"
    except Exception as error:
        reason = f"InternalServerError: {error!r}; see service.log"
        raise
    finally:

        def end(job: Document) -> None:
            now = time.time()
            job["TrainingJobStatus"] = status
            job["TrainingEndTime"] = now
            if "TrainingStartTime" in job:
                job["TrainingTimeInSeconds"] = job["BillableTimeInSeconds"] = max(
                    1, int(now - job["TrainingStartTime"])
                )
            if reason:
                job["FailureReason"] = reason[:_LONGEST_REASON]
            _enter(job, secondary, reason[:_LONGEST_REASON])

        machine.store.change(KIND, task.name, end)


def _work(machine: Machine, task: Task, job: Document, hosts: list[str], observe: Observer) -> tuple[str, str, str]:
    """Status, secondary status and failure reason of a job that got its slots."""

    def enter(status: str) -> None:
        machine.store.change(KIND, task.name, lambda job: _enter(job, status))

    if "InstanceGroups" in job["ResourceConfig"]:
        raise JobError("ClientError: InstanceGroups are not supported on this machine; InstanceCount is")
    machine.store.update(KIND, task.name, TrainingStartTime=time.time())
    enter("Downloading")
    containers = _containers(machine, job, hosts)
    for host, one in zip(hosts, containers, strict=True):
        _channels(machine, job, one.opt_ml, host, hosts)
        _configuration(job, one.opt_ml, host, hosts)
    kept = checkpoints.Checkpoints(machine, job["CheckpointConfig"], containers) if "CheckpointConfig" in job else None
    if kept:
        kept.bring()
    enter("Training")
    definitions = job["AlgorithmSpecification"].get("MetricDefinitions", [])
    metrics = [Metrics(definitions, one.log) for one in containers]

    def watch(ended: bool = False) -> None:
        values = [found for one in metrics for found in one.read(ended)]
        if values:
            machine.store.update(KIND, task.name, FinalMetricDataList=_last(metrics))
        for name, value in values:
            observe(name, value)
        if kept:
            kept.keep()

    limit = job.get("StoppingCondition", {}).get("MaxRuntimeInSeconds")
    outcome = container.run(machine, task, containers, limit, watch)
    watch(ended=True)

    enter("Uploading" if outcome.ended == "exited" else "Stopping")
    if kept:
        kept.end()
    _upload(machine, job, containers)
    if outcome.ended == "timed out":
        return "Stopped", "MaxRuntimeExceeded", ""
    if outcome.ended == "stopped":
        return "Stopped", "Stopped", task.reason
    if outcome.code != 0:
        failure = containers[outcome.which].opt_ml / "output" / "failure"
        said = failure.read_text(errors="replace").strip() if failure.is_file() else ""
        # AWS cuts at 1024 characters; the exit code at the end is worth more than the middle of a long text.
        tail = f", exit code: {outcome.code}"
        return "Failed", "Failed", f"AlgorithmError: {said}"[: _LONGEST_REASON - len(tail)] + tail
    return "Completed", "Completed", ""


def _containers(machine: Machine, job: Document, hosts: list[str]) -> list[Container]:
    """The processes to be, one a host."""
    name = job["TrainingJobName"]
    directory = machine.state / "jobs" / name
    stamp = int(time.time())
    environment = _environment(job)
    if len(hosts) > 1:
        environment = {"SM_MASTER_ADDR": "127.0.0.1", "SM_MASTER_PORT": str(_free_port()), **environment}
    return [
        Container(
            name=f"{name}/{host}",
            root=directory if len(hosts) == 1 else directory / host,
            # -P: the toolkit's own folder is not importable from, so that no module of ours hides one of theirs.
            command=["python3", "-P", str(_TOOLKIT)],
            log=machine.logs.stream(logs.TRAINING, f"{name}/{host}-{stamp}"),
            environment=environment,
            threads=1 if job.get("TuningJobName") else max(1, (os.cpu_count() or 1) // len(hosts)),
        )
        for host in hosts
    ]


def _free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _channels(machine: Machine, job: Document, opt_ml: Path, host: str, hosts: list[str]) -> None:
    for channel in job.get("InputDataConfig", []):
        name = channel["ChannelName"]
        source = channel["DataSource"].get("S3DataSource")
        if source is None or source["S3DataType"] != "S3Prefix":
            raise JobError(f"ClientError: channel {name}: only an S3DataSource of type S3Prefix is supported here")
        mode = channel.get("InputMode") or job["AlgorithmSpecification"].get("TrainingInputMode", "File")
        if mode == "Pipe":
            raise JobError(f"ClientError: channel {name}: InputMode Pipe is not supported here; File and FastFile are")
        files = found(machine, source["S3Uri"])
        if source.get("S3DataDistributionType") == "ShardedByS3Key":
            files = files[hosts.index(host) :: len(hosts)]
        objects.place(files, opt_ml / "input" / "data" / name)


def _configuration(job: Document, opt_ml: Path, host: str, hosts: list[str]) -> None:
    """/opt/ml/input/config, and the folders a container finds."""
    for folder in ("input/config", "input/data", "model", "output/data", "code"):
        (opt_ml / folder).mkdir(parents=True, exist_ok=True)
    kind = job["ResourceConfig"].get("InstanceType", "local")
    files: dict[str, Any] = {
        "hyperparameters": job.get("HyperParameters", {}),
        "resourceconfig": {
            "current_host": host,
            "current_instance_type": kind,
            "current_group_name": "homogeneousCluster",
            "hosts": hosts,
            "instance_groups": [{"instance_group_name": "homogeneousCluster", "instance_type": kind, "hosts": hosts}],
            "network_interface_name": "lo",
        },
        "inputdataconfig": {
            channel["ChannelName"]: {
                "TrainingInputMode": channel.get("InputMode", "File"),
                "S3DistributionType": channel["DataSource"]["S3DataSource"].get(
                    "S3DataDistributionType", "FullyReplicated"
                ),
                "RecordWrapperType": channel.get("RecordWrapperType", "None"),
            }
            for channel in job.get("InputDataConfig", [])
        },
    }
    if "DebugHookConfig" in job:
        local = job["DebugHookConfig"].get("LocalPath", "/opt/ml/output/tensors")
        files["debughookconfig"] = {**job["DebugHookConfig"], "LocalPath": container.mapped(local, opt_ml)}
    if "ProfilerConfig" in job:
        parameters = dict(job["ProfilerConfig"].get("ProfilingParameters", {}))
        parameters["LocalPath"] = str(opt_ml / "output" / "profiler")
        files["profilerconfig"] = {**job["ProfilerConfig"], "ProfilingParameters": parameters}
    if "CheckpointConfig" in job:
        files["checkpointconfig"] = {
            **job["CheckpointConfig"],
            "LocalPath": str(checkpoints.folder(job["CheckpointConfig"], opt_ml)),
        }
    for name, content in files.items():
        (opt_ml / "input" / "config" / f"{name}.json").write_text(json.dumps(content))


def _environment(job: Document) -> dict[str, str]:
    config = "/opt/ml/input/config"
    environment = {
        "SAGEMAKER_BASE_DIR": "/opt/ml",  # where the toolkit works, here as in the real one
        "TRAINING_JOB_NAME": job["TrainingJobName"],
        "TRAINING_JOB_ARN": job["TrainingJobArn"],
        "SAGEMAKER_JOB_NAME": job["TrainingJobName"],
    }
    # smdebug looks under /opt/ml unless it is told where to look.
    if "DebugHookConfig" in job:
        environment["SMDEBUG_CONFIG_FILE_PATH"] = f"{config}/debughookconfig.json"
    if "ProfilerConfig" in job:
        environment["SMPROFILER_CONFIG_PATH"] = f"{config}/profilerconfig.json"
    if "CheckpointConfig" in job:
        environment["CHECKPOINT_CONFIG_FILE_PATH"] = f"{config}/checkpointconfig.json"
        # Where the real container just has this folder; the script's default cannot be mapped.
        environment["SM_CHECKPOINT_DIR"] = job["CheckpointConfig"].get("LocalPath", "/opt/ml/checkpoints")
    return {**environment, **job.get("Environment", {})}


def _upload(machine: Machine, job: Document, containers: list[Container]) -> None:
    """What the job leaves; also when it failed or was stopped, as on AWS."""
    output = job["OutputDataConfig"]
    name = job["TrainingJobName"]
    base = f"{output['S3OutputPath'].rstrip('/')}/{name}"
    model = _model_uri(job)
    if output.get("CompressionType") == "NONE":
        _store(machine, containers, "/opt/ml/model", model)
        _store(machine, containers, "/opt/ml/output/data", f"{base}/output/data/")
    else:
        _store_archive(machine, [one.opt_ml / "model" for one in containers], model)
        data = [one.opt_ml / "output" / "data" for one in containers]
        _store_archive(machine, data, f"{base}/output/output.tar.gz")
    if "DebugHookConfig" in job:
        place = job["DebugHookConfig"]["S3OutputPath"].rstrip("/")
        tensors = job["DebugHookConfig"].get("LocalPath", "/opt/ml/output/tensors")
        _store(machine, containers, tensors, f"{place}/{name}/debug-output")
    if job.get("ProfilerConfig", {}).get("S3OutputPath"):
        place = job["ProfilerConfig"]["S3OutputPath"].rstrip("/")
        _store(machine, containers, "/opt/ml/output/profiler", f"{place}/{name}/profiler-output")


def _store(machine: Machine, containers: list[Container], path: str, uri: str) -> None:
    """A folder of every host; the first host's files come last, and stay."""
    for one in reversed(containers):
        machine.objects.store_folder(Path(container.mapped(path, one.opt_ml)), uri, within=one.opt_ml)


def _store_archive(machine: Machine, folders: list[Path], uri: str) -> None:
    """The hosts' folders as one .tar.gz; nothing if all are empty. Weights hardly compress: the fastest level does."""
    folders = [folder for folder in folders if any(folder.iterdir())]
    if not folders:
        return
    seen: dict[str, bool] = {}

    def once(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
        """None for a file that an earlier host has left already (and for a folder where that has left a file)."""
        was_folder = seen.setdefault(member.name, member.isdir())
        return _anonymous(member) if member.name not in done or (was_folder and member.isdir()) else None

    done: set[str] = set()
    temporary = machine.objects.temporary()
    try:
        with tarfile.open(temporary, "w:gz", compresslevel=1) as archive:
            for folder in folders:
                archive.add(folder, arcname=".", filter=once)
                done = set(seen)
        machine.objects.put(*objects.split(uri), temporary)
    finally:
        temporary.unlink(missing_ok=True)


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member


class Metrics:
    """The last value of each metric, found by its expression in a log that is still being written."""

    def __init__(self, definitions: list[dict[str, str]], log: Path) -> None:
        try:
            self._expressions = [(item["Name"], re.compile(item["Regex"])) for item in definitions]
        except re.error as error:
            raise JobError(f"ClientError: a metric's Regex is not a regular expression: {error}") from None
        self._log = log
        self._position = 0
        self._rest = b""
        self._values: dict[str, tuple[float, float]] = {}

    def read(self, ended: bool = False) -> list[tuple[str, float]]:
        """The values that are new, by name. A line counts once it is complete, or the log has ended."""
        if not self._expressions or not self._log.exists():
            return []
        with self._log.open("rb") as file:
            file.seek(self._position)
            new = file.read()
        self._position += len(new)
        *lines, self._rest = (self._rest + new).split(b"\n")
        if ended:
            lines, self._rest = [*lines, self._rest], b""
        seen = []
        for line in lines:
            text = line.decode(errors="replace")
            for name, expression in self._expressions:
                for match in expression.finditer(text):
                    value = _number(match)
                    if value is not None:
                        self._values[name] = (value, time.time())
                        seen.append((name, value))
        return seen

    def last(self) -> list[Document]:
        """As DescribeTrainingJob shows them."""
        return [{"MetricName": name, "Value": value, "Timestamp": when} for name, (value, when) in self._values.items()]


def _last(metrics: list[Metrics]) -> list[Document]:
    """The last value of each metric in the logs of all hosts."""
    found = sorted((item for one in metrics for item in one.last()), key=lambda item: float(item["Timestamp"]))
    return list({item["MetricName"]: item for item in found}.values())


def _number(match: re.Match[str]) -> float | None:
    """The value a metric's expression caught: its first group. NaN and infinity are no values (JSON has none)."""
    try:
        value = float(match[1])
    except (IndexError, TypeError, ValueError):
        return None
    return value if abs(value) < float("inf") else None
