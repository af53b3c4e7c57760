"""Processing jobs: inputs linked in, one process a host, outputs linked into the object store at the end."""

import json
import os
import time
from pathlib import Path
from typing import Any

from pipelines.local import container, logs, objects
from pipelines.local.container import Container
from pipelines.local.errors import JobError, ServiceError, in_use
from pipelines.local.machine import Machine, Task
from pipelines.local.names import arn
from pipelines.local.store import Document, Exists

KIND = "processing-job"
_LONGEST_MESSAGE = 1024  # characters of ExitMessage and FailureReason


def create(machine: Machine, request: dict[str, Any]) -> dict[str, Any]:
    """CreateProcessingJob: note the job and start it."""
    name = request["ProcessingJobName"]
    job_arn = arn(KIND, name)
    document = {**request, "ProcessingJobArn": job_arn, "ProcessingJobStatus": "InProgress"}
    try:
        machine.store.create(KIND, name, document)
    except Exists:
        raise in_use(f"Job name must be unique within an AWS account and region: {job_arn} exists already") from None
    machine.start(KIND, name, lambda task: _run(machine, task))
    return {"ProcessingJobArn": job_arn}


def _run(machine: Machine, task: Task) -> None:
    job = machine.store.get(KIND, task.name)
    hosts = [f"algo-{n}" for n in range(1, job["ProcessingResources"]["ClusterConfig"]["InstanceCount"] + 1)]
    outcome: Document
    try:
        with machine.slots.hold(task, len(hosts)) as got:
            outcome = _work(machine, task, job, hosts) if got else {"ProcessingJobStatus": "Stopped"}
    except JobError as error:
        outcome = {"ProcessingJobStatus": "Failed", "FailureReason": str(error)}
    except (ServiceError, OSError) as error:  # a missing bucket, a full disk, an entrypoint that is not there
        outcome = {"ProcessingJobStatus": "Failed", "FailureReason": f"ClientError: {error}"}
    except Exception as error:
        outcome = {"ProcessingJobStatus": "Failed", "FailureReason": f"InternalServerError: {error!r}; see service.log"}
        raise
    finally:
        if outcome["ProcessingJobStatus"] == "Stopped" and task.reason:
            outcome.setdefault("FailureReason", task.reason)
        if "FailureReason" in outcome:
            outcome["FailureReason"] = outcome["FailureReason"][:_LONGEST_MESSAGE]
        machine.store.update(KIND, task.name, **outcome, ProcessingEndTime=time.time())


def _work(machine: Machine, task: Task, job: Document, hosts: list[str]) -> Document:
    machine.store.update(KIND, task.name, ProcessingStartTime=time.time())
    application = job["AppSpecification"]
    if not application.get("ContainerEntrypoint"):
        raise JobError(
            "ClientError: AppSpecification.ContainerEntrypoint is needed: there is no image here to take it from"
        )
    directory = machine.state / "jobs" / task.name
    stamp = int(time.time())
    containers = []
    for host in hosts:
        root = directory if len(hosts) == 1 else directory / host
        opt_ml = root / "opt" / "ml"
        _inputs(machine, job, opt_ml, host, hosts)
        _outputs(job, opt_ml)
        _configuration(job, opt_ml, host, hosts)
        containers.append(
            Container(
                name=f"{task.name}/{host}",
                root=root,
                command=[*application["ContainerEntrypoint"], *application.get("ContainerArguments", [])],
                log=machine.logs.stream(logs.PROCESSING, f"{task.name}/{host}-{stamp}"),
                environment={"SM_OUTPUT_DIR": "/opt/ml/output", **job.get("Environment", {})},
                threads=max(1, (os.cpu_count() or 1) // len(hosts)),
            )
        )
    limit = job.get("StoppingCondition", {}).get("MaxRuntimeInSeconds")
    outcome = container.run(machine, task, containers, limit)

    message = _message(containers)
    said = {"ExitMessage": message} if message else {}
    if outcome.ended == "timed out":
        return {**said, "ProcessingJobStatus": "Stopped", "FailureReason": f"MaxRuntimeExceeded: it ran for {limit} s"}
    if outcome.ended == "stopped":
        return {**said, "ProcessingJobStatus": "Stopped"}
    if outcome.code != 0:
        why = message or "See job logs for more information"
        return {
            **said,
            "ProcessingJobStatus": "Failed",
            "FailureReason": f"AlgorithmError: {why}, exit code: {outcome.code}",
        }
    for one in containers:
        for output in job.get("ProcessingOutputConfig", {}).get("Outputs", []):
            place = _local(output["OutputName"], output["S3Output"], one.opt_ml)
            machine.objects.store_folder(place, output["S3Output"]["S3Uri"], within=one.root)
    return {**said, "ProcessingJobStatus": "Completed"}


def _inputs(machine: Machine, job: Document, opt_ml: Path, host: str, hosts: list[str]) -> None:
    for item in job.get("ProcessingInputs", []):
        source = item.get("S3Input")
        if source is None:
            raise JobError(
                f"ClientError: the input {item['InputName']} is not an S3Input; nothing else is supported here"
            )
        if source["S3DataType"] != "S3Prefix":
            raise JobError(f"ClientError: S3DataType {source['S3DataType']} is not supported here; S3Prefix is")
        if source.get("S3InputMode", "File") != "File":
            raise JobError(f"ClientError: S3InputMode {source['S3InputMode']} is not supported here; File is")
        files = found(machine, source["S3Uri"])
        if source.get("S3DataDistributionType") == "ShardedByS3Key":
            files = files[hosts.index(host) :: len(hosts)]
        objects.place(files, _local(item["InputName"], source, opt_ml))


def found(machine: Machine, uri: str) -> list[tuple[str, Path]]:
    """What an S3Prefix input names, which must be something.

    Raises:
        JobError: with AWS' message, when there is no bucket or nothing in it under that prefix.
    """
    try:
        files = machine.objects.under(uri)
    except ServiceError as error:
        raise JobError(f"ClientError: {error}") from None
    if not files:
        raise JobError(
            f'ClientError: No S3 objects found under S3 URL "{uri}" given in input data source. Please ensure that the'
            " bucket exists and that objects exist under that S3 prefix."
        )
    return files


def _outputs(job: Document, opt_ml: Path) -> None:
    """The folders SageMaker makes before it starts the container."""
    for output in job.get("ProcessingOutputConfig", {}).get("Outputs", []):
        if "S3Output" not in output:
            raise JobError(
                f"ClientError: the output {output['OutputName']} is not an S3Output; only S3Output is supported"
            )
        _local(output["OutputName"], output["S3Output"], opt_ml).mkdir(parents=True, exist_ok=True)
    (opt_ml / "output").mkdir(parents=True, exist_ok=True)


def _local(name: str, place: Document, opt_ml: Path) -> Path:
    """Where an input or output lies in the job's own tree."""
    path = place.get("LocalPath", "")
    if not path.startswith("/opt/ml/") or ".." in path.split("/"):
        raise JobError(f"ClientError: {name}: LocalPath must lie under /opt/ml/, and is {path!r}")
    return Path(container.mapped(path, opt_ml))


def _configuration(job: Document, opt_ml: Path, host: str, hosts: list[str]) -> None:
    folder = opt_ml / "config"
    folder.mkdir(parents=True, exist_ok=True)
    kind = job["ProcessingResources"]["ClusterConfig"]["InstanceType"]
    resources = {"current_host": host, "current_instance_type": kind, "hosts": hosts, "network_interface_name": "lo"}
    (folder / "resourceconfig.json").write_text(json.dumps(resources))
    (folder / "processingjobconfig.json").write_text(json.dumps(job, indent=1))


def _message(containers: list[Container]) -> str:
    """What a script left for its user in /opt/ml/output/message."""
    for one in containers:
        path = one.opt_ml / "output" / "message"
        if path.is_file() and (text := path.read_text(errors="replace").strip()):
            return text[:_LONGEST_MESSAGE]
    return ""
