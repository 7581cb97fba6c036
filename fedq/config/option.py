"""How one option is declared: default, help, choices, bounds, when it applies. Knows no option and no config."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields, is_dataclass
from functools import cache
from types import MappingProxyType
from typing import Any, Literal, get_args, get_type_hints

Value = str | int | float | None


@dataclass(frozen=True)
class Interval:
    """Allowed numbers, written as in mathematics: `[1, 256]`, `(0, 1]`, `(0, inf)`."""

    text: str

    def __contains__(self, value: float) -> bool:
        low, high = self._bounds
        above = low <= value if self.text[0] == "[" else low < value
        return above and (value <= high if self.text[-1] == "]" else value < high)

    def __str__(self) -> str:
        return self.text

    def nearest_bound(self) -> float:
        """The lower bound where it is allowed, else the upper one: a value for a message."""
        low, high = self._bounds
        return low if self.text[0] == "[" else high

    @property
    def _bounds(self) -> tuple[float, float]:
        low, high = (int(bound) if bound.isdecimal() else float(bound) for bound in self.text[1:-1].split(", "))
        return low, high


@dataclass(frozen=True)
class When:
    """A condition on another option: it has one of `values`, or none of `unless`.

    `why` and `fix` are for the message about an option that was set in vain; `{value}` stands for the other's value.
    """

    key: str
    values: tuple[Value, ...] = ()
    unless: tuple[Value, ...] = ()
    why: str | None = None
    fix: str | None = None

    def holds(self, value: Any) -> bool:
        return value in self.values if self.values else value not in self.unless

    def rule(self, value: Any) -> str:
        return (self.why or f"{self._name}={{value}} has no such option").format(value=value)

    def hint(self) -> str:
        return self.fix or f"Use {' or '.join(f'{self._name}={value}' for value in self.values)}"

    def __str__(self) -> str:
        if self.values:
            return f"{self._name}={'|'.join(map(shown, self.values))}"
        if self.unless == (None,):
            return f"{self._name} set"
        return f"{self._name} not {'|'.join(map(shown, self.unless))}"

    @property
    def _name(self) -> str:
        return self.key.removesuffix(".name")


@dataclass(frozen=True)
class Declared:
    """All that is known of one option."""

    key: str
    default: Any
    type: str
    help: str
    choices: tuple[Value, ...] = ()  # () for any value; a default of None is allowed beside them
    bounds: Interval | None = None
    when: tuple[When, ...] = ()
    identity: bool = True  # whether it decides the trained arrays
    holds: Literal["value", "path"] = "value"
    example: Value = None  # value that a message suggests where there is no default

    def accepts(self, value: Any) -> bool:
        """Whether a choice is one of the choices."""
        return not self.choices or value in self.choices or (value is None and self.default is None)

    def line(self) -> str:
        """The meaning with the choices, the bounds and the condition, for the help page."""
        parts = [self.help]
        if self.choices:
            parts.append(f"one of {', '.join(map(str, self.choices))}")
        if self.bounds:
            parts.append(f"in {self.bounds}")
        if self.when:
            last = {when.key: when for when in self.when}  # of several conditions on one option the last is strictest
            parts.append(f"only with {' and '.join(map(str, last.values()))}")
        return "; ".join(parts)


def option(
    default: Any,
    help: str,
    *,
    choices: Sequence[Value] = (),
    bounds: str | None = None,
    when: When | tuple[When, ...] = (),
    identity: bool = True,
    holds: Literal["value", "path"] = "value",
    example: Value = None,
) -> Any:
    """A dataclass field that is an option of an experiment; see `Declared`.

    `holds="path"`: a path that is opened or written. Such an option never comes from a network.
    """
    metadata = {
        "option": {
            "help": help,
            "choices": tuple(choices),
            "bounds": Interval(bounds) if bounds else None,
            "when": (when,) if isinstance(when, When) else when,
            "identity": identity,
            "holds": holds,
            "example": example,
        }
    }
    if isinstance(default, (dict, list)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def renamed(to: str, values: Mapping[str, str] = MappingProxyType({})) -> Any:
    """A field with an option's former name: it is read with a warning for one release. `values`: old to new ones."""
    return field(default=None, metadata={"renamed": (to, values)})


@cache
def declared(schema: type) -> dict[str, Declared]:
    """Dotted key -> its declaration, in the order of the schema."""
    found = {}
    for key, field_, hint, default in _walk(schema, ""):
        if "option" in field_.metadata:
            names = [t.__name__ for t in get_args(hint) if t is not type(None)]
            kind = names[0] if names else getattr(hint, "__name__", str(hint))
            found[key] = Declared(key, default, kind, **field_.metadata["option"])
    return found


@cache
def former_names(schema: type) -> dict[str, tuple[str, Mapping[str, str]]]:
    """Former key -> (new key, former value -> new value)."""
    return {key: f.metadata["renamed"] for key, f, _, _ in _walk(schema, "") if "renamed" in f.metadata}


def shown(value: Any) -> str:
    """A value as it is written on the command line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value).replace(" ", "").replace("'", "") if isinstance(value, (list, dict)) else str(value)


def _walk(schema: type, prefix: str) -> Iterator[tuple[str, Field[Any], Any, Any]]:
    """(dotted key, field, type, default) of every field that is no group itself."""
    hints, defaults = get_type_hints(schema), schema()
    for f in fields(schema):
        hint = hints[f.name]
        if isinstance(hint, type) and is_dataclass(hint):
            yield from _walk(hint, f"{prefix}{f.name}.")
        else:
            yield f"{prefix}{f.name}", f, hint, getattr(defaults, f.name)
