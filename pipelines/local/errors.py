"""Errors of the caller, as AWS reports them."""


class ServiceError(Exception):
    """An answer other than success: AWS' error code, a message, and the HTTP status."""

    def __init__(self, code: str, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.status = status


def invalid(message: str) -> ServiceError:
    """The request itself is wrong."""
    return ServiceError("ValidationException", message)


def not_found(message: str) -> ServiceError:
    """The pipeline, execution, … named does not exist."""
    return ServiceError("ResourceNotFound", message)


def in_use(message: str) -> ServiceError:
    """A job, endpoint, … of that name exists already."""
    return ServiceError("ResourceInUse", message)


class JobError(Exception):
    """A job that can not go on, for a reason its user can act on; the message becomes its FailureReason."""
