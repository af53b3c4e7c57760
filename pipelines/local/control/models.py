"""Model package groups, model packages and models."""

from typing import Any

from pipelines.local import registry
from pipelines.local.control.context import Operation, Service
from pipelines.local.control.listing import page
from pipelines.local.errors import ServiceError, invalid
from pipelines.local.names import from_arn
from pipelines.local.store import Document


def _group(service: Service, name: str) -> Document:
    document = service.machine.store.find(registry.GROUP, from_arn(name, registry.GROUP))
    if document is None:
        raise invalid(f"Model Package Group {name} does not exist.")
    return document


def _create_group(service: Service, request: dict[str, Any]) -> dict[str, Any]:
    return registry.create_group(service.machine, request)


def _describe_group(service: Service, request: dict[str, Any]) -> dict[str, Any]:
    return _group(service, request["ModelPackageGroupName"])


def _list_groups(service: Service, request: dict[str, Any]) -> dict[str, Any]:
    documents = service.machine.store.list(registry.GROUP)
    return page(request, documents, "ModelPackageGroupSummaryList", "ModelPackageGroupName")


def _delete_group(service: Service, request: dict[str, Any]) -> dict[str, Any]:
    name = _group(service, request["ModelPackageGroupName"])["ModelPackageGroupName"]
    if service.machine.store.list(registry.PACKAGE, parent=name):
        raise ServiceError("ConflictException", f"Model Package Group {name} still holds model packages.")
    service.machine.store.delete(registry.GROUP, name)
    return {}


def _create_package(service: Service, request: dict[str, Any]) -> dict[str, Any]:
    return registry.create_package(service.machine, request)


def _describe_package(service: Service, request: dict[str, Any]) -> dict[str, Any]:
    return registry.package(service.machine, request["ModelPackageName"])


def _list_packages(service: Service, request: dict[str, Any]) -> dict[str, Any]:
    kind = request.get("ModelPackageType", "Unversioned" if "ModelPackageGroupName" not in request else "Versioned")
    group = from_arn(request.get("ModelPackageGroupName", ""), registry.GROUP)
    kept = []
    for document in service.machine.store.list(registry.PACKAGE, parent=group or None):
        versioned = "ModelPackageVersion" in document
        status = request.get("ModelApprovalStatus")
        if kind in ("Both", "Versioned" if versioned else "Unversioned") and status in (
            None,
            document["ModelApprovalStatus"],
        ):
            kept.append(document)
    return page(request, kept, "ModelPackageSummaryList", "ModelPackageArn")


def _update_package(service: Service, request: dict[str, Any]) -> dict[str, Any]:
    name = from_arn(registry.package(service.machine, request["ModelPackageArn"])["ModelPackageArn"], registry.PACKAGE)
    for key in ("AdditionalInferenceSpecificationsToAdd", "InferenceSpecification"):
        if key in request:
            raise invalid(f"UpdateModelPackage: {key} is not supported on this machine")

    def edit(document: Document) -> None:
        kept = ("ModelApprovalStatus", "ApprovalDescription", "SourceUri", "ModelCard", "ModelLifeCycle")
        document |= {key: request[key] for key in kept if key in request}
        custom = {**document.get("CustomerMetadataProperties", {}), **request.get("CustomerMetadataProperties", {})}
        for key in request.get("CustomerMetadataPropertiesToRemove", []):
            custom.pop(key, None)
        if custom:
            document["CustomerMetadataProperties"] = custom
        document["LastModifiedBy"] = {}

    document = service.machine.store.change(registry.PACKAGE, name, edit)
    return {"ModelPackageArn": document["ModelPackageArn"]}


def _delete_package(service: Service, request: dict[str, Any]) -> dict[str, Any]:
    name = from_arn(registry.package(service.machine, request["ModelPackageName"])["ModelPackageArn"], registry.PACKAGE)
    service.machine.store.delete(registry.PACKAGE, name)
    return {}


def _create_model(service: Service, request: dict[str, Any]) -> dict[str, Any]:
    return registry.create_model(service.machine, request)


def _describe_model(service: Service, request: dict[str, Any]) -> dict[str, Any]:
    return registry.model(service.machine, request["ModelName"])


def _list_models(service: Service, request: dict[str, Any]) -> dict[str, Any]:
    return page(request, service.machine.store.list(registry.MODEL), "Models", "ModelName")


def _delete_model(service: Service, request: dict[str, Any]) -> dict[str, Any]:
    name = registry.model(service.machine, request["ModelName"])["ModelName"]
    service.machine.store.delete(registry.MODEL, name)
    return {}


OPERATIONS: dict[str, Operation] = {
    "CreateModelPackageGroup": _create_group,
    "DescribeModelPackageGroup": _describe_group,
    "ListModelPackageGroups": _list_groups,
    "DeleteModelPackageGroup": _delete_group,
    "CreateModelPackage": _create_package,
    "DescribeModelPackage": _describe_package,
    "ListModelPackages": _list_packages,
    "UpdateModelPackage": _update_package,
    "DeleteModelPackage": _delete_package,
    "CreateModel": _create_model,
    "DescribeModel": _describe_model,
    "ListModels": _list_models,
    "DeleteModel": _delete_model,
}
