"""Step caching: an earlier run's result in place of a job with the same arguments.

What AWS documents (SageMaker's Developer Guide, "Caching pipeline steps", "Turn on step caching" and "Default cache
key attributes by pipeline step type"):

- Only successful runs of the same step in the same pipeline are reused, the most recent first, and none that is older
  than `ExpireAfter`. A run that was itself taken from the cache makes nothing younger: the run it came from counts.
- Not all arguments count. Where a job writes never does, nor what it runs on; see `_ATTRIBUTES`.
- URIs are compared, not what lies there.

Beyond that, what the earlier run left must still be there as it left it: here the object store is a folder that people
clear up.
"""

import hashlib
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pipelines.local import processing, training, tuning
from pipelines.local.errors import ServiceError
from pipelines.local.machine import Machine
from pipelines.local.store import Document

# "Default cache key attributes by pipeline step type". `TrainingJobDefinitions` is left out: it is refused here.
_ATTRIBUTES = {
    "Processing": ("AppSpecification", "Environment", "ProcessingInputs"),
    "Training": (
        "AlgorithmSpecification",
        "CheckpointConfig",
        "DebugHookConfig",
        "DebugRuleConfigurations",
        "Environment",
        "HyperParameters",
        "InputDataConfig",
    ),
    "Tuning": ("HyperParameterTuningJobConfig", "TrainingJobDefinition"),
}
_OF_TRAINING_JOB_DEFINITION = (
    "AlgorithmSpecification",
    "HyperParameterRanges",
    "InputDataConfig",
    "StaticHyperParameters",
    "TuningObjective",
)
_WHERE_TO = "S3OutputPath"  # where the debugger writes; it may hold the execution's id
_DURATION = re.compile(
    r"P?(?=.)(?:(\d+)Y)?(?:(\d+)M)?(?:(\d+)W)?(?:(\d+)D)?(?:T(?=\d)(?:(\d+)H)?(?:(\d+)M)?)?", re.IGNORECASE
)
_HOUR = 3600
_DAY = 24 * _HOUR
_UNITS = (365 * _DAY, 30 * _DAY, 7 * _DAY, _DAY, _HOUR, 60)  # seconds in a year, month, week, day, hour, minute


def seconds(text: str) -> int:
    """How long `ExpireAfter` is.

    An ISO 8601 duration in years, months, weeks, days, hours and minutes: `P30D`, `PT12H`, `P1DT2H`. The P may be
    missing and the letters be small (`30d`, `T16m`): the Developer Guide writes them so. A month has 30 days, a year
    365.

    Raises:
        ValueError: it is no such duration.
    """
    match = _DURATION.fullmatch(text)
    numbers = match.groups() if match else ()
    if not any(number is not None for number in numbers):
        raise ValueError(f"{text!r} is not an ISO 8601 duration such as 'P30D', 'PT12H' or 'P1DT2H'")
    return sum(int(number or 0) * unit for number, unit in zip(numbers, _UNITS, strict=True))


def check(config: Any) -> Iterator[str]:
    """What is wrong with a step's CacheConfig."""
    if not isinstance(config, dict) or not isinstance(config.get("Enabled"), bool):
        yield f"CacheConfig needs Enabled, true or false, not {config!r}"
        return
    if unknown := sorted(set(config) - {"Enabled", "ExpireAfter"}):
        yield f"CacheConfig has Enabled and ExpireAfter, not {', '.join(unknown)}"
    after = config.get("ExpireAfter")
    if after is None:
        if config["Enabled"]:
            yield "CacheConfig needs ExpireAfter, such as 'P30D', when caching is turned on"
        return
    try:
        seconds(str(after))
    except ValueError as error:
        yield f"CacheConfig.ExpireAfter: {error}"


def attributes(kind: str, request: Document) -> Document:
    """The arguments of a step of type `kind` that must be equal for its result to be reused."""
    found = {name: request[name] for name in _ATTRIBUTES[kind] if name in request}
    if "TrainingJobDefinition" in found:
        definition = found["TrainingJobDefinition"]
        found["TrainingJobDefinition"] = {
            name: definition[name] for name in _OF_TRAINING_JOB_DEFINITION if name in definition
        }
    if "DebugHookConfig" in found:
        found["DebugHookConfig"] = _without_place(found["DebugHookConfig"])
    if "DebugRuleConfigurations" in found:
        found["DebugRuleConfigurations"] = [_without_place(rule) for rule in found["DebugRuleConfigurations"]]
    return found


def _without_place(config: Document) -> Document:
    return {name: value for name, value in config.items() if name != _WHERE_TO}


def record(machine: Machine, kind: str, request: Document, job: Document) -> Document:
    """What to keep beside a step that has succeeded, for later executions to find it by."""
    left = {uri: fingerprint(machine, uri) for uri in _outputs(machine, kind, job)}
    return {"Type": kind, "Attributes": attributes(kind, request), "Left": left}


def _outputs(machine: Machine, kind: str, job: Document) -> list[str]:
    """The prefixes under which a job has left something."""
    if kind == "Processing":
        outputs = job.get("ProcessingOutputConfig", {}).get("Outputs", [])
        return [output["S3Output"]["S3Uri"] for output in outputs]
    jobs = [job]
    if kind == "Tuning":
        jobs = machine.store.list(training.KIND, parent=job["HyperParameterTuningJobName"])
    return [f"{one['OutputDataConfig']['S3OutputPath'].rstrip('/')}/{one['TrainingJobName']}/output/" for one in jobs]


def fingerprint(machine: Machine, uri: str) -> str:
    """Tells whether the objects under a prefix are still the same: a hash of their names, sizes and times."""
    digest = hashlib.sha256()
    try:
        for name, path in machine.objects.under(uri):
            stat = path.stat()
            digest.update(f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    except (ServiceError, FileNotFoundError):  # no such bucket; something deleted while we look
        return ""
    return digest.hexdigest()


@dataclass(frozen=True)
class Hit:
    """An earlier run that can stand in for this one."""

    execution: str
    """The ARN of the execution that ran the job."""
    metadata: Document
    job: Document


def find(
    machine: Machine, earlier: list[tuple[str, Document]], kind: str, request: Document, expire_after: str
) -> tuple[Hit | None, str]:
    """The run to reuse.

    Args:
        machine: where the jobs and their outputs are.
        earlier: (execution's ARN, the step as it was noted there) of the same pipeline, the most recent first.
        kind: the step's type.
        request: what would be run.
        expire_after: how old a run may be, counted from its end.

    Returns:
        The hit, or None and why there is none: what stood in the way of the most recent run.
    """
    wanted = attributes(kind, request)
    why = ""
    for execution, step in earlier:
        kept = step.get("Cache")
        if step["StepStatus"] != "Succeeded" or kept is None or kept["Type"] != kind:
            continue
        obstacle = _differs(kept["Attributes"], wanted)
        if not obstacle and time.time() - step["EndTime"] > seconds(expire_after):
            obstacle = f"is older than {expire_after}"
        if not obstacle:
            obstacle = _lost(machine, kept["Left"])
        hit = None if obstacle else _hit(machine, kind, execution, step)
        obstacle = obstacle or _lacks(hit, request)
        if hit and not obstacle:
            return hit, ""
        why = why or f"the run in {execution} {obstacle}"
    return None, why or "there is no earlier successful run"


def _differs(then: Document, now: Document) -> str:
    names = sorted(name for name in then.keys() | now.keys() if then.get(name) != now.get(name))
    return f"had other {', '.join(names)}" if names else ""


def _lost(machine: Machine, left: dict[str, str]) -> str:
    for uri, before in left.items():
        if fingerprint(machine, uri) != before:
            return f"left something in {uri} that is gone or has changed"
    return ""


def _hit(machine: Machine, kind: str, execution: str, step: Document) -> Hit:
    module, shown = {
        "Processing": (processing, "ProcessingJob"),
        "Training": (training, "TrainingJob"),
        "Tuning": (tuning, "TuningJob"),
    }[kind]
    name = step["Metadata"][shown]["Arn"].rsplit("/", 1)[1]
    return Hit(execution, step["Metadata"], machine.store.get(module.KIND, name))


def _lacks(hit: Hit | None, request: Document) -> str:
    """Outputs do not count for AWS; but one that later steps may read and that was never made can not be reused."""
    if hit is None:
        return ""
    there = _names(hit.job)
    missing = [name for name in _names(request) if name not in there]
    return f"has no output {', '.join(missing)}" if missing else ""


def _names(job: Document) -> list[str]:
    return [output["OutputName"] for output in job.get("ProcessingOutputConfig", {}).get("Outputs", [])]
