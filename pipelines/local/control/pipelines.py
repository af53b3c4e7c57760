"""Pipelines and their executions."""

import time
from typing import Any

from pipelines.local import definition, engine, names
from pipelines.local.control.context import Operation, Service
from pipelines.local.control.listing import page
from pipelines.local.errors import ServiceError, invalid, not_found
from pipelines.local.store import Document, Exists
from pipelines.service_model import as_text

KIND = "pipeline"
_UNSUPPORTED = ("SelectiveExecutionConfig", "PipelineVersionId", "MlflowExperimentName")
_RUNNING = ("Executing", "Stopping")


def _pipeline(service: Service, name: str) -> Document:
    document = service.machine.store.find(KIND, names.from_arn(name, KIND))
    if document is None:
        raise not_found(f"Pipeline '{name}' does not exist.")
    return document


def _execution(service: Service, arn: str) -> Document:
    document = service.machine.store.find(engine.EXECUTION, arn)
    if document is None:
        raise not_found(f"Pipeline execution '{arn}' does not exist.")
    return document


def _definition(service: Service, request: dict[str, Any]) -> str | None:
    """The definition a request carries or points to, checked; None if it has neither."""
    text: str | None = request.get("PipelineDefinition")
    if location := request.get("PipelineDefinitionS3Location"):
        if text is not None:
            raise invalid("Give either PipelineDefinition or PipelineDefinitionS3Location, not both")
        text = service.machine.objects.read(f"s3://{location['Bucket']}/{location['ObjectKey']}").decode()
    if text is not None:
        try:
            definition.parse(text)
        except definition.Invalid as error:
            raise invalid(str(error)) from None
    return text


def _create(service: Service, request: dict[str, Any]) -> dict[str, Any]:
    name = request["PipelineName"]
    text = _definition(service, request)
    if text is None:
        raise invalid("PipelineDefinition is required")
    document = {
        **{key: value for key, value in request.items() if key not in ("ClientRequestToken", "Tags")},
        "PipelineDefinition": text,
        "PipelineArn": names.arn(KIND, name),
        "PipelineStatus": "Active",
        "Version": 1,
        "CreatedBy": {},
        "LastModifiedBy": {},
    }
    document.pop("PipelineDefinitionS3Location", None)
    try:
        service.machine.store.create(KIND, name, document)
    except Exists:  # the SDK's upsert looks for these words
        raise invalid(
            "Pipeline names must be unique within an AWS account and region."
            f" Pipeline with name ({name}) already exists."
        ) from None
    return {"PipelineArn": document["PipelineArn"]}


def _update(service: Service, request: dict[str, Any]) -> dict[str, Any]:
    name = _pipeline(service, request["PipelineName"])["PipelineName"]
    text = _definition(service, request)

    def edit(document: Document) -> None:
        document |= {key: value for key, value in request.items() if key != "PipelineDefinitionS3Location"}
        if text is not None:
            document["PipelineDefinition"] = text
            document["Version"] += 1

    document = service.machine.store.change(KIND, name, edit)
    return {"PipelineArn": document["PipelineArn"], "PipelineVersionId": document["Version"]}


def _describe(service: Service, request: dict[str, Any]) -> dict[str, Any]:
    if "PipelineVersionId" in request:
        raise invalid("PipelineVersionId is not supported on this machine: only the latest version is kept")
    return _pipeline(service, request["PipelineName"])


def _delete(service: Service, request: dict[str, Any]) -> dict[str, Any]:
    document = _pipeline(service, request["PipelineName"])
    executions = service.machine.store.list(engine.EXECUTION, parent=document["PipelineArn"])
    if running := [one["PipelineExecutionArn"] for one in executions if one["PipelineExecutionStatus"] in _RUNNING]:
        raise ServiceError(
            "ConflictException", f"Pipeline {document['PipelineName']} has running executions: {running}"
        )
    service.machine.store.delete(KIND, document["PipelineName"])
    return {"PipelineArn": document["PipelineArn"]}


def _list(service: Service, request: dict[str, Any]) -> dict[str, Any]:
    documents = service.machine.store.list(KIND)
    prefix = request.get("PipelineNamePrefix", "")
    kept = [document for document in documents if document["PipelineName"].startswith(prefix)]
    answer = page(request, kept, "PipelineSummaries", "PipelineName")
    for document in answer["PipelineSummaries"]:
        document["LastExecutionTime"] = document.get("LastRunTime", document["CreationTime"])
    return answer


def _start(service: Service, request: dict[str, Any]) -> dict[str, Any]:
    for option in _UNSUPPORTED:
        if option in request:
            raise invalid(f"{option} is not supported on this machine")
    pipeline = _pipeline(service, request["PipelineName"])
    given = request.get("PipelineParameters", [])
    try:
        values = definition.parse(pipeline["PipelineDefinition"]).values(given)
    except definition.Invalid as error:
        raise invalid(str(error)) from None
    identifier = names.random_id(12)
    arn = f"{pipeline['PipelineArn']}/execution/{identifier}"
    document = {
        "PipelineArn": pipeline["PipelineArn"],
        "PipelineName": pipeline["PipelineName"],
        "PipelineExecutionArn": arn,
        "PipelineExecutionDisplayName": f"execution-{int(time.time() * 1000)}",
        "PipelineExecutionStatus": "Executing",
        "PipelineDefinition": pipeline["PipelineDefinition"],
        "PipelineParameters": given,
        "ParameterValues": values,
        "PipelineVersionId": pipeline["Version"],
        "CreatedBy": {},
        "LastModifiedBy": {},
    }
    if "ParallelismConfiguration" in pipeline:
        document["ParallelismConfiguration"] = pipeline["ParallelismConfiguration"]
    for key in ("PipelineExecutionDisplayName", "PipelineExecutionDescription", "ParallelismConfiguration"):
        if key in request:
            document[key] = request[key]
    service.machine.store.create(engine.EXECUTION, arn, document, parent=pipeline["PipelineArn"])
    service.machine.store.update(KIND, pipeline["PipelineName"], LastRunTime=time.time())
    engine.start(service.machine, service.hosting, arn)
    return {"PipelineExecutionArn": arn}


def _stop(service: Service, request: dict[str, Any]) -> dict[str, Any]:
    document = _execution(service, request["PipelineExecutionArn"])
    task = service.machine.task(engine.EXECUTION, document["PipelineExecutionArn"])
    if task is None:
        status = document["PipelineExecutionStatus"]
        raise ServiceError("ConflictException", f"Only a running execution can be stopped; this one is {status}")
    task.stop()
    return {"PipelineExecutionArn": document["PipelineExecutionArn"]}


def _describe_execution(service: Service, request: dict[str, Any]) -> dict[str, Any]:
    return _execution(service, request["PipelineExecutionArn"])


def _list_executions(service: Service, request: dict[str, Any]) -> dict[str, Any]:
    pipeline = _pipeline(service, request["PipelineName"])
    documents = service.machine.store.list(engine.EXECUTION, parent=pipeline["PipelineArn"])
    request = {**request, "SortBy": "CreationTime"}  # its only other choice is the ARN's, which is random
    answer = page(request, documents, "PipelineExecutionSummaries", "PipelineExecutionArn")
    for document in answer["PipelineExecutionSummaries"]:
        document["StartTime"] = document["CreationTime"]
        if "FailureReason" in document:
            document["PipelineExecutionFailureReason"] = document["FailureReason"]
    return answer


def _list_steps(service: Service, request: dict[str, Any]) -> dict[str, Any]:
    arn = _execution(service, request.get("PipelineExecutionArn", ""))["PipelineExecutionArn"]
    return page(request, service.machine.store.list(engine.STEP, parent=arn), "PipelineExecutionSteps", "StepName")


def _list_parameters(service: Service, request: dict[str, Any]) -> dict[str, Any]:
    execution = _execution(service, request["PipelineExecutionArn"])
    named = [{"Name": name, "Value": as_text(value)} for name, value in execution["ParameterValues"].items()]
    return page({**request, "SortBy": "Name", "SortOrder": "Ascending"}, named, "PipelineParameters", "Name")


def _definition_for_execution(service: Service, request: dict[str, Any]) -> dict[str, Any]:
    return _execution(service, request["PipelineExecutionArn"])


OPERATIONS: dict[str, Operation] = {
    "CreatePipeline": _create,
    "UpdatePipeline": _update,
    "DescribePipeline": _describe,
    "DeletePipeline": _delete,
    "ListPipelines": _list,
    "StartPipelineExecution": _start,
    "StopPipelineExecution": _stop,
    "DescribePipelineExecution": _describe_execution,
    "ListPipelineExecutions": _list_executions,
    "ListPipelineExecutionSteps": _list_steps,
    "ListPipelineParametersForExecution": _list_parameters,
    "DescribePipelineDefinitionForExecution": _definition_for_execution,
}
