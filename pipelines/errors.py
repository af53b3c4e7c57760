"""What the command line tells its user in one line, and what it exits with."""


class UserError(Exception):
    """The user's mistake, or something that is missing: what was wrong, the value, what was expected, the way out."""

    status = 2
    """Exit code."""


def is_missing(error: Exception) -> bool:
    """Whether a ClientError says that what was asked for is not there."""
    answer = getattr(error, "response", {}).get("Error", {})
    return answer.get("Code") == "ResourceNotFound" or "not find" in answer.get("Message", "")


class ExecutionFailed(UserError):
    """An execution that did not succeed; the details have been printed already."""

    status = 1
