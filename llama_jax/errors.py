"""`InputError`: invalid user input, reported in one line."""


class InputError(ValueError):
    """Invalid user input: the command line prints it as one line and exits with status 2."""


def require(condition: object, message: str) -> None:
    """Raise InputError(message) unless the condition holds."""
    if not condition:
        raise InputError(message)
