"""Records as bytes and back, strictly: one encoding a record, and every other bytes are refused.

The fields of a dataclass follow one another in their order, by their types: `int` (of 32 bits, not
negative) as 4 bytes, little-endian; `Annotated[bytes, n]` as they are; `bytes` and `tuple[T, ...]`
after their length, an `int`; a dataclass as its own fields.
"""

from collections.abc import Callable
from functools import cache
from typing import Annotated, Any, NamedTuple, get_args, get_origin, get_type_hints

from research.exchange.secure_aggregation.errors import MalformedMessage


def written(kind: Any, value: Any) -> list[bytes]:
    """The parts of the bytes of a `kind`."""
    parts: list[bytes] = []
    _coding(kind).write(value, parts)
    return parts


def read(kind: Any, text: bytes, at: int = 0) -> tuple[Any, int]:
    """The `kind` whose bytes begin at `at`, and where they end.

    Raises MalformedMessage where they are cut short.
    """
    return _coding(kind).read(text, at)


class _Coding(NamedTuple):
    """How values of a type are written and read."""

    write: Callable[[Any, list[bytes]], None]
    """`write(value, parts)` appends its bytes."""
    read: Callable[[bytes, int], tuple[Any, int]]
    """`read(text, at)`: the value whose bytes begin there, and where they end."""


@cache
def _coding(kind: Any) -> _Coding:
    if kind is int:
        return _INTEGER
    if kind is bytes:
        return _BYTES
    if get_origin(kind) is Annotated:
        return _fixed(get_args(kind)[1])
    if get_origin(kind) is tuple:
        return _many(_coding(get_args(kind)[0]))
    hints = get_type_hints(kind, include_extras=True)
    return _record(kind, {name: _coding(field) for name, field in hints.items()})


def _take(text: bytes, at: int, count: int) -> tuple[bytes, int]:
    end = at + count
    if end > len(text):
        raise MalformedMessage(f"a message ends {end - len(text)} bytes too early")
    return text[at:end], end


def _write_integer(value: int, parts: list[bytes]) -> None:
    parts.append(value.to_bytes(4, "little"))


def _read_integer(text: bytes, at: int) -> tuple[int, int]:
    taken, at = _take(text, at, 4)
    return int.from_bytes(taken, "little"), at


def _write_bytes(value: bytes, parts: list[bytes]) -> None:
    _write_integer(len(value), parts)
    parts.append(value)


def _read_bytes(text: bytes, at: int) -> tuple[bytes, int]:
    count, at = _read_integer(text, at)
    return _take(text, at, count)


_INTEGER = _Coding(_write_integer, _read_integer)
_BYTES = _Coding(_write_bytes, _read_bytes)


def _fixed(count: int) -> _Coding:
    def write(value: bytes, parts: list[bytes]) -> None:
        if len(value) != count:
            raise ValueError(f"{len(value)} bytes in the place of {count}")
        parts.append(value)

    return _Coding(write, lambda text, at: _take(text, at, count))


def _many(item: _Coding) -> _Coding:
    def write(value: tuple, parts: list[bytes]) -> None:
        _write_integer(len(value), parts)
        for each in value:
            item.write(each, parts)

    def read(text: bytes, at: int) -> tuple[tuple, int]:
        count, at = _read_integer(text, at)
        if count > len(text) - at:  # every item takes a byte or more
            raise MalformedMessage(f"a message ends before its {count} items")
        items = []
        for _ in range(count):
            each, at = item.read(text, at)
            items.append(each)
        return tuple(items), at

    return _Coding(write, read)


def _record(kind: Any, fields: dict[str, _Coding]) -> _Coding:
    def write(value: Any, parts: list[bytes]) -> None:
        for name, field in fields.items():
            field.write(getattr(value, name), parts)

    def read(text: bytes, at: int) -> tuple[Any, int]:
        values = []
        for field in fields.values():
            value, at = field.read(text, at)
            values.append(value)
        return kind(*values), at

    return _Coding(write, read)
