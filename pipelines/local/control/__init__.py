"""SageMaker's operations: one table from name to function, and what surrounds each call."""

from typing import Any

from pipelines import service_model
from pipelines.local.control import endpoints, jobs, models, pipelines, tags
from pipelines.local.control.context import Operation, Service
from pipelines.local.errors import ServiceError, invalid

OPERATIONS: dict[str, Operation] = {
    **pipelines.OPERATIONS,
    **jobs.OPERATIONS,
    **models.OPERATIONS,
    **endpoints.OPERATIONS,
    **tags.OPERATIONS,
}
__all__ = ["OPERATIONS", "Service", "call"]


class WrongAnswer(Exception):
    """We were about to answer with something SageMaker's model does not allow: a bug of ours."""


def call(service: Service, operation: str, request: Any) -> dict[str, Any]:
    """Answer one request.

    Raises:
        ServiceError: what AWS would refuse, and operations that are not supported here.
    """
    if not service_model.knows(operation):
        raise ServiceError("UnknownOperationException", f"SageMaker has no operation {operation}")
    if operation not in OPERATIONS:
        raise ServiceError("NotImplemented", f"{operation} is not supported by SageMaker on this machine")
    if wrong := service_model.validate(operation, request):
        noun = "error" if len(wrong) == 1 else "errors"
        raise invalid(f"{len(wrong)} validation {noun} detected: {'; '.join(wrong)}")
    document = OPERATIONS[operation](service, request)
    if request.get("Tags") and operation != "AddTags":
        arn = next((value for key, value in document.items() if key.endswith("Arn")), None)
        if arn:
            tags.add(service, arn, request["Tags"])
    answer = service_model.trim(operation, document)
    if wrong := service_model.validate_answer(operation, answer):
        raise WrongAnswer(f"{operation}: {'; '.join(wrong)}")
    return answer
