"""Processing, training and tuning jobs."""

from types import ModuleType
from typing import Any

from pipelines.local import processing, training, tuning
from pipelines.local.control.context import Operation, Service
from pipelines.local.control.listing import page
from pipelines.local.errors import ServiceError, not_found
from pipelines.local.store import Document

_LABELS: dict[str, ModuleType] = {
    "ProcessingJob": processing,
    "TrainingJob": training,
    "HyperParameterTuningJob": tuning,
}
_ENDED = ("Completed", "Failed", "Stopped")


def _job(service: Service, label: str, name: str) -> Document:
    document = service.machine.store.find(_LABELS[label].KIND, name)
    if document is None:
        what = {"ProcessingJob": "Could not find requested job", "TrainingJob": "Requested resource not found."}
        raise not_found(f"{what.get(label, 'Could not find tuning job')} with name: {name}")
    return document


def _family(label: str) -> dict[str, Operation]:
    """Create, describe, list and stop: the same for the three kinds."""
    module, name, status = _LABELS[label], f"{label}Name", f"{label}Status"

    def create(service: Service, request: dict[str, Any]) -> dict[str, Any]:
        answer: dict[str, Any] = module.create(service.machine, request)
        return answer

    def describe(service: Service, request: dict[str, Any]) -> dict[str, Any]:
        return _job(service, label, request[name])

    def list_(service: Service, request: dict[str, Any]) -> dict[str, Any]:
        answer = page(request, service.machine.store.list(module.KIND), f"{label}Summaries", name, status)
        if label == "HyperParameterTuningJob":
            for document in answer["HyperParameterTuningJobSummaries"]:
                config = document["HyperParameterTuningJobConfig"]
                document |= {"Strategy": config["Strategy"], "ResourceLimits": config["ResourceLimits"]}
        return answer

    def stop(service: Service, request: dict[str, Any]) -> dict[str, Any]:
        document = _job(service, label, request[name])
        task = service.machine.task(module.KIND, request[name])
        if task is None:
            code = "ValidationException" if label != "ProcessingJob" else "ResourceNotFound"
            raise ServiceError(code, f"The request was rejected because the job is in status {document[status]}.")

        def stopping(job: Document) -> None:
            if job[status] not in _ENDED:
                job[status] = "Stopping"

        service.machine.store.change(module.KIND, request[name], stopping)
        task.stop()
        return {}

    return {f"Create{label}": create, f"Describe{label}": describe, f"List{label}s": list_, f"Stop{label}": stop}


def _list_trials(service: Service, request: dict[str, Any]) -> dict[str, Any]:
    name = request["HyperParameterTuningJobName"]
    _job(service, "HyperParameterTuningJob", name)
    trials = service.machine.store.list(training.KIND, parent=name)
    if request.get("SortBy") == "FinalObjectiveMetricValue":  # only those that have one, the lowest first
        trials = [trial for trial in trials if _objective(trial) is not None]
        request = {"SortOrder": "Ascending", **request}
        return page(request, trials, "TrainingJobSummaries", "TrainingJobName", "TrainingJobStatus", order=_objective)
    return page(request, trials, "TrainingJobSummaries", "TrainingJobName", "TrainingJobStatus")


def _objective(trial: Document) -> float | None:
    metric = trial.get("FinalHyperParameterTuningJobObjectiveMetric")
    return metric["Value"] if metric else None


OPERATIONS: dict[str, Operation] = {
    **_family("ProcessingJob"),
    **_family("TrainingJob"),
    **_family("HyperParameterTuningJob"),
    "ListTrainingJobsForHyperParameterTuningJob": _list_trials,
}
