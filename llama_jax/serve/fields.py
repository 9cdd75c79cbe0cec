"""Validates fields of a JSON body: their types and bounds, named in the error."""

import math
from collections.abc import Mapping
from typing import Any

from llama_jax.config import InputError
from llama_jax.runtime.files import parse_json, shown
from llama_jax.serve.errors import ApiError, invalid


class Fields:
    """The fields of an object. What is null counts as absent, as OpenAI's clients send it."""

    def __init__(self, values: Mapping[str, Any], path: str = ""):
        self.values = {name: value for name, value in values.items() if value is not None}
        self.path = path

    def name(self, field: str) -> str:
        """As messages say it."""
        return f"{self.path}.{field}" if self.path else field

    def get(self, field: str) -> Any:
        """The value as it came; None if it is absent."""
        return self.values.get(field)

    def whole(self, field: str, default: int | None, low: int, high: int) -> Any:
        """A whole number from low to high."""
        value = self.values.get(field, default)
        if value is default:
            return default
        if type(value) is not int or not low <= value <= high:
            raise invalid(
                self.name(field), f"must be a whole number from {low} to {high}, not {shown(value)}"
            )
        return value

    def number(self, field: str, default: float, low: int | float, high: int | float) -> float:
        """A number from low to high."""
        value = self.values.get(field, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise invalid(self.name(field), f"must be a number, not {shown(value)}")
        if not low <= value <= high:
            raise invalid(
                self.name(field), f"must be a number from {low:g} to {high:g}, not {shown(value)}"
            )
        return float(value)

    def flag(self, field: str, default: bool = False) -> bool:
        """True or false."""
        value = self.values.get(field, default)
        if not isinstance(value, bool):
            raise invalid(self.name(field), f"must be true or false, not {shown(value)}")
        return value

    def text(self, field: str, default: str | None, most: int) -> Any:
        """A text of so many characters at most."""
        value = self.values.get(field, default)
        if value is default:
            return default
        if not isinstance(value, str):
            raise invalid(self.name(field), f"must be a string, not {shown(value)}")
        if len(value) > most:
            raise invalid(
                self.name(field), f"must have at most {most:,} characters, not {len(value):,}"
            )
        return value

    def texts(self, field: str, *, count: int, most: int) -> list[str]:
        """One text or several; empty and absent ones are left out."""
        value = self.values.get(field, [])
        given = [value] if isinstance(value, str) else value
        if not isinstance(given, list) or len(given) > count:
            raise invalid(
                self.name(field),
                f"must be a string or a list of at most {count}, not {shown(value)}",
            )
        for n, one in enumerate(given):
            if not isinstance(one, str | None) or len(one or "") > most:
                raise invalid(
                    f"{self.name(field)}[{n}]",
                    f"must be a string of at most {most} characters, not {shown(one)}",
                )
        return [one for one in given if one]

    def object(self, field: str) -> "Fields":
        """An object's own fields; none if it is absent."""
        value = self.values.get(field, {})
        if not isinstance(value, dict):
            raise invalid(self.name(field), f"must be an object, not {shown(value)}")
        return Fields(value, self.name(field))


def parse_body(content: bytes) -> Fields:
    """The fields of a request's body.

    Raises ApiError 400 for what is no JSON object, or holds numbers or text that no JSON has.
    """
    try:
        values = parse_json(content.decode("utf-8"), "The body", unique=True)
    except UnicodeDecodeError as error:
        raise _no_json(f"The body is no UTF-8: byte {error.start} is wrong.") from error
    except InputError as error:
        raise _no_json(f"{error}.") from error
    if not isinstance(values, dict):
        raise _no_json(f"The body must be a JSON object, not {shown(values)}.")
    _require_finite(values)
    return Fields(values)


def _no_json(message: str) -> ApiError:
    return ApiError(400, message, code="invalid_json")


def _require_finite(values: Any) -> None:
    """NaN and Infinity are Python's, not JSON's."""
    waiting = [values]
    while waiting:
        value = waiting.pop()
        if isinstance(value, float) and not math.isfinite(value):
            raise _no_json("The body holds a number that is not finite, which JSON has not.")
        if isinstance(value, dict | list):
            waiting.extend(value.values() if isinstance(value, dict) else value)
