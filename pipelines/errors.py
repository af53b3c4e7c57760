"""What the command line tells its user in one line, and what it exits with."""


class UserError(Exception):
    """The user's mistake, or something that is missing: what was wrong, the value, what was expected, the way out."""

    status = 2
    """Exit code."""


class ExecutionFailed(UserError):
    """An execution that did not succeed; the details have been printed already."""

    status = 1
