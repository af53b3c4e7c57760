"""Tags: kept by ARN, given back as they are."""

import contextlib
from typing import Any

from pipelines.local.control.context import Operation, Service
from pipelines.local.store import Document, Exists

KIND = "tags"


def _change(service: Service, arn: str, tags: dict[str, str | None]) -> list[dict[str, str]]:
    """Set or (with None) remove tags; returns all there are then."""
    with contextlib.suppress(Exists):
        service.machine.store.create(KIND, arn, {"Values": {}})

    def edit(document: Document) -> None:
        merged = {**document["Values"], **tags}
        document["Values"] = {key: value for key, value in merged.items() if value is not None}

    values = service.machine.store.change(KIND, arn, edit)["Values"]
    return [{"Key": key, "Value": value} for key, value in values.items()]


def add(service: Service, arn: str, tags: list[dict[str, str]]) -> list[dict[str, str]]:
    """Set tags; returns all there are then."""
    return _change(service, arn, {tag["Key"]: tag["Value"] for tag in tags})


def _add(service: Service, request: dict[str, Any]) -> dict[str, Any]:
    return {"Tags": add(service, request["ResourceArn"], request["Tags"])}


def _list(service: Service, request: dict[str, Any]) -> dict[str, Any]:
    document = service.machine.store.find(KIND, request["ResourceArn"]) or {"Values": {}}
    return {"Tags": [{"Key": key, "Value": value} for key, value in document["Values"].items()]}


def _delete(service: Service, request: dict[str, Any]) -> dict[str, Any]:
    _change(service, request["ResourceArn"], dict.fromkeys(request["TagKeys"]))
    return {}


OPERATIONS: dict[str, Operation] = {"AddTags": _add, "ListTags": _list, "DeleteTags": _delete}
