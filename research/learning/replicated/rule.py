"""A rule: what replicas that differ do with their gradients, and with their parameters.

    g'_r = on_gradients(g_r)                       exchanged, compressed, or left alone
    w_r  = w_r + update(g'_r)                      by any optax optimizer, each replica its own
    w'_r = on_parameters(w_r)                      averaged, mixed, or left alone

Both are written for one replica, as an `Exchange` is, and run at every step. What happens now and
then stands in a `jax.lax.cond`, so that it costs its share of the time only; `when` decides in the
compiled step and in the account of what is sent, so that the two cannot differ.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np

from research.exchange import Message, Moment, Replicas, messages_sent, sent

Tree = Any
When = Callable[[Any], Any]
"""Whether something happens in a step, by its number from 0: of an int, or of an array of them."""
Apply = Callable[[Tree, Tree, Moment], tuple[Tree, Tree]]


class Sending(NamedTuple):
    """Messages, and the steps that send them."""

    when: When
    messages: list[Message]


class Rule(NamedTuple):
    """One way to learn together."""

    init: Callable[[Tree], Tree]
    """`init(parameters)`: the rule's state at the start, of one replica; the same on all."""
    on_gradients: Apply
    """`on_gradients(gradients, state, moment)`: what the optimizer gets, and the state."""
    on_parameters: Apply
    """`on_parameters(parameters, state, moment)`: the parameters after the step, and the state."""
    sendings: Callable[[Tree, Replicas], list[Sending]]
    """`sendings(shapes, replicas)`: what a device sends for such parameters, as `messages` of an
    exchange."""
    facts: Mapping[str, float] = MappingProxyType({})
    """Numbers that are logged with every record."""


def bytes_at(sendings: list[Sending], step: int) -> int:
    """What a device sends in `step` (from 0; bytes)."""
    return sum(sent(messages) for when, messages in sendings if when(step))


def bytes_before(sendings: list[Sending], step: int) -> int:
    """What a device sends in all steps before `step` (bytes)."""
    return _before(sendings, step, sent)


def messages_before(sendings: list[Sending], step: int) -> int:
    """How many messages a device sends one after another in all steps before `step`."""
    return _before(sendings, step, messages_sent)


def _before(sendings: list[Sending], step: int, count: Callable[[list[Message]], int]) -> int:
    steps = np.arange(step)
    return sum(int(np.sum(when(steps))) * count(messages) for when, messages in sendings)


def always(step: Any) -> Any:
    """In every step."""
    return step >= 0


def every(period: int, first: int = 0) -> When:
    """At the end of every `period` steps, counted from step `first`."""
    return lambda step: (step >= first) & ((step - first + 1) % period == 0)


def before(first: int) -> When:
    """In the steps before step `first`."""
    return lambda step: step < first


def at(when: When, apply: Apply) -> Apply:
    """`apply` in the steps that `when` says; in the others the tree and the state pass."""

    def sometimes(tree: Tree, state: Tree, moment: Moment) -> tuple[Tree, Tree]:
        return jax.lax.cond(
            when(moment.step),
            lambda tree, state: apply(tree, state, moment),
            lambda tree, state: (tree, state),
            tree,
            state,
        )

    return sometimes


def alone(tree: Tree, state: Tree, moment: Moment) -> tuple[Tree, Tree]:
    """Nothing is exchanged."""
    return tree, state
