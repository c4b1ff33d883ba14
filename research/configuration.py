"""Configurations as data: frozen dataclasses to JSON and back, and values of the wrong type named.

JSON holds every field, and the class of every nested dataclass under `type`, so that a union of
configs (the models, the data sets) comes back as what it was.
"""

import dataclasses
import types
import typing
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

from research.errors import UserError

Json = dict[str, Any]


def to_json(config: Any) -> Any:
    """`config` (a dataclass, or any value of one) as what the json module can write."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        values = {f.name: to_json(getattr(config, f.name)) for f in dataclasses.fields(config)}
        return {"type": config.__class__.__name__, **values}
    if isinstance(config, list | tuple):
        return [to_json(item) for item in config]
    if isinstance(config, dict):
        return {key: to_json(item) for key, item in config.items()}
    return config


def from_json(annotation: Any, value: Any, where: str = "config") -> Any:
    """The value of type `annotation` that `to_json` wrote. Raises UserError naming what does not
    fit."""
    if isinstance(value, dict) and "type" in value:
        classes: dict[str, Any] = {
            getattr(c, "__name__", ""): c
            for c in _members(annotation)
            if dataclasses.is_dataclass(c)
        }
        kind = classes.get(value["type"])
        if kind is None:
            raise UserError(f"{where}: {value['type']} is none of {', '.join(classes)}")
        hints = typing.get_type_hints(kind)
        given = {name: item for name, item in value.items() if name != "type"}
        check_names(given, list(hints), where)
        return kind(
            **{
                name: from_json(hints[name], item, f"{where}.{name}")
                for name, item in given.items()
            }
        )
    if isinstance(value, list) and any(typing.get_origin(m) is tuple for m in _members(annotation)):
        value = tuple(value)
    check_type(annotation, value, where)
    return value


def check(config: Any, where: str) -> None:
    """Raises UserError for the first field of `config` (a dataclass) whose value is of a wrong
    type.

    Python does not look at the types of a config file; without this a string where a number belongs
    fails deep inside a compiler.
    """
    for name, annotation in typing.get_type_hints(type(config)).items():
        value = getattr(config, name)
        check_type(annotation, value, f"{where}.{name}")
        if dataclasses.is_dataclass(value):
            check(value, f"{where}.{name}")


def check_type(annotation: Any, value: Any, where: str) -> None:
    """Raises UserError if `value` is no `annotation`."""
    if not any(_fits(member, value) for member in _members(annotation)):
        wanted = " or ".join(_name(member) for member in _members(annotation))
        raise UserError(f"{where} is {value!r}, but must be {wanted}{_hint(annotation, value)}")


def check_names(given: typing.Iterable[str], known: list[str], where: str) -> None:
    """Raises UserError for the first of `given` that is not `known`, with the nearest known
    name."""
    for name in given:
        if name not in known:
            raise UserError(f"{where} has no field `{name}`: {nearest(name, known)}")


def nearest(name: str, known: list[str]) -> str:
    """A hint for a mistyped `name`: the nearest of `known`, or all of them."""
    near = get_close_matches(name, known, n=1)
    return f"did you mean `{near[0]}`?" if near else f"it has {', '.join(known)}"


def _members(annotation: Any) -> tuple[Any, ...]:
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return typing.get_args(annotation)
    return (annotation,)


def check_bounds(section: str, bounds: Iterable[tuple[str, Any, bool, str]]) -> None:
    """Raises UserError for the first of (name, value, whether it fits, what is wanted), the fields
    of a `section` of the experiment, that does not fit."""
    for name, value, fits, wanted in bounds:
        if not fits:
            raise UserError(f"--{section}.{name} {value} must be {wanted}")


def multiples_near(number: int, of: int) -> str:
    """The multiples next to a `number` that is none, such as `4 or 8`."""
    below = number - number % of
    return f"{below} or {below + of}" if below else f"{of}"


def _fits(annotation: Any, value: Any) -> bool:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return value in arguments
    if origin is tuple:
        items = arguments[0] if arguments else Any
        return isinstance(value, tuple) and all(_fits(items, item) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(_fits(arguments[1], v) for v in value.values())
    if annotation is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if annotation is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return annotation is Any or isinstance(value, annotation)


def _name(annotation: Any) -> str:
    if annotation is types.NoneType:
        return "None"
    if typing.get_origin(annotation) is typing.Literal:
        return " or ".join(repr(choice) for choice in typing.get_args(annotation))
    if dataclasses.is_dataclass(annotation):
        return f"a {getattr(annotation, '__name__', annotation)}"
    names = {int: "a whole number", float: "a number", str: "a string", bool: "True or False"}
    return names.get(annotation, str(annotation))


def _hint(annotation: Any, value: Any) -> str:
    choices = [
        str(choice)
        for member in _members(annotation)
        if typing.get_origin(member) is typing.Literal
        for choice in typing.get_args(member)
    ]
    near = get_close_matches(str(value), choices, n=1)
    return f": did you mean {near[0]!r}?" if near else ""
