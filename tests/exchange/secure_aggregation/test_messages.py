"""Bytes of messages: one encoding each, and everything else refused."""

from typing import Annotated, Any, get_args, get_origin, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from research.exchange.secure_aggregation import MalformedMessage, decode, encode
from research.exchange.secure_aggregation.messages import KINDS, Share, Shares, Survivors


def values_of(kind: Any) -> st.SearchStrategy[Any]:
    if kind is int:
        return st.integers(0, 2**32 - 1)
    if kind is bytes:
        return st.binary(max_size=40)
    if get_origin(kind) is Annotated:
        return st.binary(min_size=get_args(kind)[1], max_size=get_args(kind)[1])
    if get_origin(kind) is tuple:
        return st.lists(values_of(get_args(kind)[0]), max_size=3).map(tuple)
    hints = get_type_hints(kind, include_extras=True)
    return st.tuples(*map(values_of, hints.values())).map(lambda values: kind(*values))


MESSAGES = st.sampled_from(KINDS).flatmap(values_of)


@given(message=MESSAGES)
def test_what_is_written_is_read(message: Any) -> None:
    assert decode(encode(message)) == message


@given(message=MESSAGES, data=st.data())
def test_bytes_that_are_no_message_are_refused(message: Any, data: st.DataObject) -> None:
    text = encode(message)
    with pytest.raises(MalformedMessage, match="bytes follow"):
        decode(text + data.draw(st.binary(min_size=1, max_size=9)))
    with pytest.raises(MalformedMessage):
        decode(text[: data.draw(st.integers(0, len(text) - 1))])


@given(text=st.binary(max_size=300) | st.tuples(st.sampled_from(range(9)), st.binary(max_size=300)))
def test_any_bytes_are_refused_or_the_only_encoding_of_what_they_say(text: Any) -> None:
    text = bytes([text[0]]) + text[1] if isinstance(text, tuple) else text
    try:
        message = decode(text)
    except MalformedMessage:
        return
    assert encode(message) == text


def test_bytes_by_hand() -> None:
    survivors = Survivors(b"r" * 32, (1, 258), (3,))
    by_hand = (
        b"\5" + b"r" * 32 + bytes([2, 0, 0, 0, 1, 0, 0, 0, 2, 1, 0, 0, 1, 0, 0, 0, 3, 0, 0, 0])
    )
    assert encode(survivors) == by_hand
    shares = Shares(b"r" * 32, 7, (), (Share(9, b"s" * 33),))
    by_hand = (
        b"\x08" + b"r" * 32 + bytes([7, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 9, 0, 0, 0]) + b"s" * 33
    )
    assert encode(shares) == by_hand


def test_a_length_beyond_the_end_reserves_no_memory() -> None:
    with pytest.raises(MalformedMessage, match="ends before its 4294967295 items"):
        decode(b"\5" + b"r" * 32 + b"\xff" * 4)
    with pytest.raises(MalformedMessage, match="no message begins with ff"):
        decode(b"\xff")
    with pytest.raises(MalformedMessage, match="no message begins with nothing"):
        decode(b"")


def test_fields_of_another_length_are_not_written() -> None:
    with pytest.raises(ValueError, match="31 bytes in the place of 32"):
        encode(Survivors(b"r" * 31, (), ()))
