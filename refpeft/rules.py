"""What a value in somebody's JSON has to be, in words for the message and as a test."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, NamedTuple

from refpeft.errors import ConfigError

MAXIMUM_SIZE: Final = 2**31
"""No size of a model comes near; a larger number in a file is damage, and would only exhaust the memory."""

MAXIMUM_DEPTH: Final = 100
"""Lists and dictionaries within one another; what is nested deeper exhausts the stack of whoever walks it."""


class Rule(NamedTuple):
    """What a value has to be: in words, for the message, and as a test."""

    expected: str
    accepts: Callable[[Any], bool]

    def or_none(self) -> "Rule":
        """The same, or None."""
        return Rule(f"{self.expected} or None", lambda value: value is None or self.accepts(value))

    def check(self, name: str, value: object) -> None:
        """Refuse a value that is something else.

        Raises:
            ConfigError: it is; the message names the field, what is expected, and what was given.
        """
        if not self.accepts(value):
            shown = _shown(value)
            shown = shown if len(shown) <= 80 else f"{shown[:77]}..."
            raise ConfigError(f"{name} must be {self.expected}, not {shown} ({type(value).__name__}).")


def _shown(value: object) -> str:
    try:
        return repr(value)
    except RecursionError:
        return "something nested too deeply to show"
    except ValueError:  # Python writes no more than 4300 digits
        return "a number too long to show"


def is_shallow(value: object) -> bool:
    """Whether lists and dictionaries are nested at most `MAXIMUM_DEPTH` deep in `value`."""
    level: list[object] = [value]
    for _ in range(MAXIMUM_DEPTH + 1):
        inner = [_children(item) for item in level if isinstance(item, list | tuple | Mapping)]
        if not inner:
            return True
        level = list({id(child): child for children in inner for child in children}.values())
    return False


def _children(value: list[Any] | tuple[Any, ...] | Mapping[Any, Any]) -> Iterable[Any]:
    return value.values() if isinstance(value, Mapping) else value


def is_integer(value: object) -> bool:
    """Whether `value` is what JSON calls an integer: Python counts True and False too, JSON does not."""
    return isinstance(value, int) and not isinstance(value, bool)


SIZE = Rule(
    f"an integer from 1 to {MAXIMUM_SIZE}", lambda value: is_integer(value) and 1 <= value <= MAXIMUM_SIZE
)
STRING = Rule("a string", lambda value: isinstance(value, str))
BOOLEAN = Rule("true or false", lambda value: isinstance(value, bool))
DICTIONARY = Rule("a dictionary", lambda value: isinstance(value, Mapping))
STRINGS = Rule(
    "a list of strings",
    lambda value: isinstance(value, list) and all(isinstance(item, str) for item in value),
)
SHALLOW = Rule(f"nested at most {MAXIMUM_DEPTH} deep", is_shallow)
