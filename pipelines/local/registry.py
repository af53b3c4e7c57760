"""Model package groups, model packages and models."""

from typing import Any

from pipelines.local.errors import ServiceError, in_use, invalid
from pipelines.local.machine import Machine
from pipelines.local.names import arn, from_arn
from pipelines.local.store import Document, Exists

GROUP = "model-package-group"
PACKAGE = "model-package"
MODEL = "model"


def create_group(machine: Machine, request: dict[str, Any]) -> dict[str, Any]:
    """CreateModelPackageGroup."""
    name = request["ModelPackageGroupName"]
    document = {**request, "ModelPackageGroupArn": arn(GROUP, name), "ModelPackageGroupStatus": "Completed"}
    try:
        machine.store.create(GROUP, name, {**document, "CreatedBy": {}})
    except Exists:
        raise invalid(f"Model Package Group already exists: {arn(GROUP, name)}") from None
    return {"ModelPackageGroupArn": document["ModelPackageGroupArn"]}


def create_package(machine: Machine, request: dict[str, Any], make_group: bool = False) -> dict[str, Any]:
    """CreateModelPackage: the next version in a group, or a package of its own.

    Args:
        machine: where it is kept.
        request: the API's.
        make_group: make the group if it is missing, as a pipeline's RegisterModel step does.
    """
    group = from_arn(request.get("ModelPackageGroupName", ""), GROUP)
    name = request.get("ModelPackageName", "")
    if bool(group) == bool(name):
        raise invalid("A model package needs either ModelPackageGroupName or ModelPackageName")
    document: Document = {
        "ModelApprovalStatus": "PendingManualApproval" if group else "Approved",
        **request,
        "ModelPackageStatus": "Completed",
        "ModelPackageStatusDetails": {"ValidationStatuses": []},
        "CreatedBy": {},
    }
    document.pop("Tags", None)
    if not group:
        return _create(machine, name, {**document, "ModelPackageArn": arn(PACKAGE, name)}, parent="")
    if machine.store.find(GROUP, group) is None:
        if not make_group:
            raise invalid(f"Model Package Group {arn(GROUP, group)} does not exist.")
        create_group(machine, {"ModelPackageGroupName": group})
    while True:
        version = 1 + max((one["ModelPackageVersion"] for one in machine.store.list(PACKAGE, parent=group)), default=0)
        full = f"{group}/{version}"
        versioned = {
            **document,
            "ModelPackageGroupName": group,
            "ModelPackageName": group,  # the API's pattern leaves no room for the version
            "ModelPackageVersion": version,
            "ModelPackageArn": arn(PACKAGE, full),
        }
        try:
            return _create(machine, full, versioned, parent=group)
        except ServiceError:
            continue  # another step took this version in between


def _create(machine: Machine, name: str, document: Document, parent: str) -> dict[str, Any]:
    try:
        machine.store.create(PACKAGE, name, document, parent=parent)
    except Exists:
        raise in_use(f"Model Package already exists: {document['ModelPackageArn']}") from None
    return {"ModelPackageArn": document["ModelPackageArn"]}


def package(machine: Machine, name: str) -> Document:
    """A package by name, `GROUP/VERSION` or ARN."""
    document = machine.store.find(PACKAGE, from_arn(name, PACKAGE))
    if document is None:
        raise invalid(f"ModelPackage {name} does not exist.")
    return document


def create_model(machine: Machine, request: dict[str, Any]) -> dict[str, Any]:
    """CreateModel. One container with a model archive, given directly or by model package."""
    name = request["ModelName"]
    containers = [request["PrimaryContainer"]] if "PrimaryContainer" in request else request.get("Containers", [])
    if len(containers) != 1:
        raise invalid(f"A model on this machine has exactly one container; {name} has {len(containers)}")
    model_data(machine, containers[0])  # that it says where the model is
    document = {**request, "ModelArn": arn(MODEL, name)}
    document.setdefault("EnableNetworkIsolation", False)
    try:
        machine.store.create(MODEL, name, document)
    except Exists:
        raise invalid(f"Cannot create already existing model {arn(MODEL, name)}.") from None
    return {"ModelArn": document["ModelArn"]}


def model(machine: Machine, name: str) -> Document:
    """A model by name."""
    document = machine.store.find(MODEL, name)
    if document is None:
        raise invalid(f'Could not find model "{arn(MODEL, name)}".')
    return document


def container_of(model: Document) -> Document:
    """A model's one container."""
    container: Document = model.get("PrimaryContainer") or model["Containers"][0]
    return container


def model_data(machine: Machine, container: Document) -> tuple[str, dict[str, str]]:
    """Where a container's model archive lies, and the container's environment."""
    environment = dict(container.get("Environment", {}))
    if "ModelPackageName" in container:
        uri, base = model_data(machine, _packed(machine, container["ModelPackageName"]))
        return uri, {**base, **environment}
    if "ModelDataUrl" in container:
        return container["ModelDataUrl"], environment
    source = container.get("ModelDataSource", {}).get("S3DataSource")
    if source and source.get("CompressionType") == "Gzip":
        return source["S3Uri"], environment
    raise invalid("A container needs ModelDataUrl, ModelPackageName or a ModelDataSource with CompressionType Gzip")


def image(machine: Machine, container: Document) -> str:
    """The image a container names, itself or by its model package; nothing here runs it."""
    if "ModelPackageName" in container:
        container = _packed(machine, container["ModelPackageName"])
    return str(container.get("Image", ""))


def _packed(machine: Machine, name: str) -> Document:
    containers = package(machine, name).get("InferenceSpecification", {}).get("Containers", [])
    if len(containers) != 1:
        raise invalid(f"{name} must hold exactly one container, not {len(containers)}")
    return dict(containers[0])
