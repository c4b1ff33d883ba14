"""How many messages a device sends one after another, by hand: what latency counts."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest

from research.exchange import (
    Exchange,
    Message,
    Replicas,
    adasum,
    hierarchical_mean,
    mean,
    messages_sent,
    mix,
    powersgd,
    top_k,
    two_shot,
)
from research.exchange.codecs import CODECS
from research.exchange.topology import offsets
from research.learning import ExchangeConfig
from research.learning.replicated.rule import messages_before
from research.parallel.wire import wire_messages

MATRICES = {"a": (16, 32), "b": (64, 16), "c": (8, 8, 8)}


def shapes(**more: tuple[int, ...]) -> dict[str, Any]:
    return {n: jax.ShapeDtypeStruct(s, jnp.float32) for n, s in (MATRICES | more).items()}


@pytest.mark.parametrize(
    ("kind", "messages"),
    [
        ("all-reduce", 14),  # round the ring, to add up and to tell
        ("all-gather", 7),
        ("reduce-scatter", 7),
        ("all-to-all", 7),  # one to each other
        ("collective-permute", 1),
    ],
)
def test_messages_of_one_collective_among_eight(kind: str, messages: int) -> None:
    assert wire_messages(kind, 8) == messages
    assert wire_messages(kind, 1) == (kind == "collective-permute")


@pytest.mark.parametrize(
    ("exchange", "count", "messages"),
    [
        (mean(), 8, 2 * 7),  # however many arrays there are
        (mean(), 1, 0),
        (hierarchical_mean(2), 8, 2 * 3 + 2 * 1),
        (hierarchical_mean(2), 4, 2 * 1 + 2 * 1),  # two levels, of two parties both
        (powersgd(2), 8, 2 * 14),  # Q needs P
        (top_k(0.1), 8, 7),  # values and places together
        (two_shot(CODECS["int8"](), 8), 8, 7 + 7),  # levels and scales together
        (adasum(8), 8, 3),  # one partner after another
        (mix(offsets("ring", 8), 8), 8, 2),
        (mix(offsets("complete", 8), 8), 8, 7),
    ],
)
def test_messages_of_an_exchange(exchange: Exchange, count: int, messages: int) -> None:
    assert messages_sent(exchange.messages(shapes(), Replicas(count))) == messages


def test_what_cannot_be_cut_is_one_more_all_reduce() -> None:
    exchange = two_shot(CODECS["sign"](), 8)
    made: list[Message] = exchange.messages(shapes(bias=(3,)), Replicas(8))
    assert messages_sent(made) == 7 + 7 + 14


@pytest.mark.parametrize(
    ("exchange", "messages"),
    [
        (ExchangeConfig("every_step", replicas=4), [6 * step for step in range(8)]),
        (ExchangeConfig("local_sgd", replicas=4, period=3), [0, 0, 0, 6, 6, 6, 12, 12]),
        (ExchangeConfig("sgp", replicas=4), list(range(8))),
        (ExchangeConfig("dpsgd", replicas=4), [2 * step for step in range(8)]),
    ],
    ids=lambda value: getattr(value, "rule", ""),
)
def test_messages_of_a_rule_so_far(exchange: ExchangeConfig, messages: list[int]) -> None:
    sendings = exchange.build(steps=8).sendings(shapes(), Replicas(4))
    assert [messages_before(sendings, step) for step in range(8)] == messages
