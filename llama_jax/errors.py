"""What a user is told when something that they gave cannot be used."""


class InputError(ValueError):
    """What the user gave cannot be used. The command line prints it as one line, status 2."""


def require(condition: object, message: str) -> None:
    """Raise InputError(message) unless the condition holds."""
    if not condition:
        raise InputError(message)
