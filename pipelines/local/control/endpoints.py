"""Endpoint configurations and endpoints."""

from typing import Any

from pipelines.local import hosting
from pipelines.local.control.context import Operation, Service
from pipelines.local.control.listing import page


def _create_config(service: Service, request: dict[str, Any]) -> dict[str, Any]:
    return service.hosting.create_config(request)


def _describe_config(service: Service, request: dict[str, Any]) -> dict[str, Any]:
    return service.hosting.config(request["EndpointConfigName"])


def _list_configs(service: Service, request: dict[str, Any]) -> dict[str, Any]:
    return page(request, service.machine.store.list(hosting.CONFIG), "EndpointConfigs", "EndpointConfigName")


def _delete_config(service: Service, request: dict[str, Any]) -> dict[str, Any]:
    name = service.hosting.config(request["EndpointConfigName"])["EndpointConfigName"]
    service.machine.store.delete(hosting.CONFIG, name)
    return {}


def _create(service: Service, request: dict[str, Any]) -> dict[str, Any]:
    return service.hosting.create(request)


def _update(service: Service, request: dict[str, Any]) -> dict[str, Any]:
    return service.hosting.update(request)


def _describe(service: Service, request: dict[str, Any]) -> dict[str, Any]:
    return service.hosting.endpoint(request["EndpointName"])


def _list(service: Service, request: dict[str, Any]) -> dict[str, Any]:
    return page(request, service.machine.store.list(hosting.ENDPOINT), "Endpoints", "EndpointName", "EndpointStatus")


def _delete(service: Service, request: dict[str, Any]) -> dict[str, Any]:
    service.hosting.delete(request["EndpointName"])
    return {}


OPERATIONS: dict[str, Operation] = {
    "CreateEndpointConfig": _create_config,
    "DescribeEndpointConfig": _describe_config,
    "ListEndpointConfigs": _list_configs,
    "DeleteEndpointConfig": _delete_config,
    "CreateEndpoint": _create,
    "UpdateEndpoint": _update,
    "DescribeEndpoint": _describe,
    "ListEndpoints": _list,
    "DeleteEndpoint": _delete,
}
