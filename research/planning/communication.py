"""What a step has to send, by theory: bytes on the wire for every kind of parallelism.

Parameters of P bytes on a device, activations of A bytes (a device's part of a microbatch: rows ×
tokens × width), m microbatches, L layers on a device, n devices along an axis. A device sends

    data     2 P (n-1)/n                 one all-reduce of gradients; with a server also over
                                         `replica`, and P once more for what a worker has fetched
    fsdp     2 P' (n-1)/n                P' = n P made whole, for the forward and the backward pass
             P' (n-1)/n                  gradients reduced and scattered; both m times
    tensor   m L · 4 · 2 A (n-1)/n       after attention and MLP, and before them on the way back
                                         (Shoeybi et al. 2019, arXiv:1909.08053, figure 4); one more
                                         for the embedding, and one for the head
    context  m L · (6n - 4) K            a ring of keys and values of K bytes each: forward n-1
                                         times both, backward again, and n times their gradients
    expert   m L · 4 E (n-1)/n           E bytes of places at experts, there and back
    stage    T A (S-1)/S                 each way, for T ticks of S stages, and m A (S-1)/S² each
                                         way to share the head's work

A whole parameter's gradient is summed over all the axes that split examples or tokens. A pipeline
runs layers in T ticks instead of m times, and 1f1b runs them forward twice.

The CPU backend differs in two things that are counted here: it sends bfloat16 as float32, and it
sums the gradients of an input that several matrices read (queries, keys, values; gate) one by one,
which an accelerator's compiler adds before it sums them over devices.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import jax

from research.learning import (
    Asynchronous,
    BatchEnsemble,
    Ensemble,
    Federated,
    LocalWorkers,
    Replicated,
    Snapshots,
)
from research.learning.federated.algorithm import Server
from research.models import TransformerConfig
from research.models.dispatch import capacity_of
from research.models.model import LAYERS
from research.parallel.layout import axes_of_spec
from research.parallel.wire import wire_share
from research.planning.step import Passes, Step, bytes_on_a_device, passes_of


@dataclass(frozen=True)
class Expected:
    """Bytes that a device has to send in a step, for one purpose."""

    kind: str
    axes: tuple[str, ...]
    purpose: str
    formula: str
    wire: float


def expected(step: Step) -> list[Expected]:
    """All that theory has for `step`; what has nothing to send is left out.

    For models that are no transformers only what concerns parameters is known, and of clients what
    they and their server send each other.
    """
    if step.clients is not None:
        return [row for row in _rounds(step, step.clients) if row.wire > 0]
    passes = passes_of(step)
    rows = list(_parameters(step, passes))
    if isinstance(step.model, TransformerConfig):
        for part in (_tensor, _vocabulary, _context, _experts, _stages):
            rows += part(step, passes)
    if step.replicas is not None:  # one device's learn one after another
        seats = step.replicas.replicas.seats
        rows = [replace(row, wire=seats * row.wire) for row in rows]
        rows += _exchanges(step.replicas)
    if isinstance(step.server, Asynchronous | LocalWorkers | Snapshots):
        rows.append(_fetched(step))
    return [row for row in rows if row.wire > 0]


def _exchanges(replicas: Replicated | Ensemble | BatchEnsemble) -> Iterator[Expected]:
    """What the rule states, of a step that has all of it."""
    for _, messages in replicas.sendings():
        for message in messages:
            yield Expected(
                message.kind, ("replica",), "exchange", "as its rule states", message.sent
            )


def _rounds(step: Step, clients: Federated) -> Iterator[Expected]:
    """What clients send is added up on each device, and then over devices, or laid side by side on
    all; with several models of the server's that is one move of each."""
    state, algorithm = clients.on_devices, clients.algorithm
    _, up = algorithm.sent(Server(state.parameters, state.shared, state.optimizer))
    sums = (up if algorithm.clusters is None else state.parameters, state.buffers)
    size, devices, rows = bytes_on_a_device(sums), step.mesh["replica"], clients.rows
    if clients.aggregation.stacks:
        share = clients.population.cohort * size * wire_share("all-gather", devices)
        formula = "C P (n-1)/n, of C clients"
        yield Expected("all-gather", ("replica",), "updates side by side", formula, share)
    else:
        yield _sum(step, ("replica",), "what clients send", "2 P (n-1)/n", size)
    here = bytes_on_a_device(state.clients)
    if here == 0 or devices == 1 or not clients.rows_cross:
        return
    is_split = rows % devices == 0
    cohort = clients.population.cohort * here / (rows // devices if is_split else rows)
    share, formula = cohort * wire_share("all-gather", devices), "C R (n-1)/n, of C clients' rows"
    if is_split:
        yield Expected("reduce-scatter", ("replica",), "the table's rows", formula, share)
    yield Expected("all-gather", ("replica",), "rows that come back", formula, share)


def _fetched(step: Step) -> Expected:
    """What the worker has whose turn it is, from those devices that hold its copy to all."""
    one = step.learner.abstract_state
    size = bytes_on_a_device(one.parameters)
    if not isinstance(step.server, LocalWorkers):
        return _sum(step, ("replica",), "what a worker has fetched", "2 P (n-1)/n", size)
    if jax.tree.leaves(step.server.abstract_state.workers.fetched):
        size *= 2
    size += bytes_on_a_device(one.optimizer)
    return _sum(step, ("replica",), "what a worker has", "2 W (n-1)/n, with its optimizer", size)


# Parameters ------------------------------------------------------------------------------------


def _parameters(step: Step, passes: Passes) -> Iterator[Expected]:
    """Parameters gathered, gradients reduced, whole or to where their parameters lie."""
    gathered = scattered = 0.0
    summed: dict[tuple[str, ...], float] = {}  # bytes, by the axes that they are summed over
    for path, leaf in jax.tree_util.tree_leaves_with_path(step.learner.abstract_state.parameters):
        split = axes_of_spec(leaf.sharding.spec)
        here = leaf.size // math.prod(step.mesh[axis] for axis in split)
        is_layer = path[0].key == LAYERS
        looked_up, read = path[0].key == "embedding", _is_read(step, path)
        # How often its gradient arises, or (of layers) a part of it as large.
        times = passes.backward / passes.here
        if not is_layer:  # of a tied table by the lookup, and by the head
            times = step.microbatches * read + passes.embeds_back * (looked_up or not read)
        over = tuple(a for a in step.among(*step.axes_of_batch, "context") if a not in split)
        late: tuple[str, ...] = ()
        if step.is_looped:
            late = (*step.among("data"), *(() if is_layer else step.among("stage")))
            over = tuple(axis for axis in over if axis not in late)
            summed[late] = summed.get(late, 0) + here * 4
        if "fsdp" in split:
            count = passes.gathers / passes.here
            if not is_layer:
                count = passes.gathers_of_ends * (looked_up or not read)
                count += (passes.gathers_of_head - looked_up) * read
            whole = here * step.mesh["fsdp"] * step.itemsize
            gathered += whole * count
            scattered += whole * times
        # The sum of a product over a split sequence comes first; a lookup's is one over all axes.
        products = times - passes.embeds_back if looked_up else times
        for axes, count in (
            (over, times - products),
            (tuple(axis for axis in over if axis == "context"), products),
            (tuple(axis for axis in over if axis != "context"), products),
        ):
            summed[axes] = summed.get(axes, 0) + here * step.itemsize * count
    if step.mesh["fsdp"] > 1:
        share = wire_share("all-gather", step.mesh["fsdp"])
        yield Expected("all-gather", ("fsdp",), "parameters", "P' (n-1)/n a pass", gathered * share)
        yield Expected("reduce-scatter", ("fsdp",), "gradients", "P' (n-1)/n", scattered * share)
    for axes, total in summed.items():
        yield _sum(step, axes, "gradients", "2 P (n-1)/n", total)


def _is_read(step: Step, path: Any) -> bool:
    """Whether it makes the logits: the head, or a table that is both."""
    tied = bool(getattr(step.model, "tied_head", False))
    return bool(path[0].key == ("embedding" if tied else "head"))


def _sum(step: Step, axes: tuple[str, ...], purpose: str, formula: str, payload: float) -> Expected:
    """An all-reduce of `payload` bytes."""
    in_order = tuple(axis for axis in step.mesh if axis in axes)
    devices = math.prod(step.mesh[axis] for axis in in_order)
    share = wire_share("all-reduce", devices) if devices > 1 else 0.0
    return Expected("all-reduce", in_order, purpose, formula, payload * share)


# Activations -----------------------------------------------------------------------------------


def _tensor(step: Step, passes: Passes) -> Iterator[Expected]:
    if step.mesh["tensor"] == 1 or step.model.experts:
        return
    attention, mlp = step.is_split("attention/query"), step.is_split("mlp/up")
    there, back = attention + mlp, attention + mlp
    if step.platform == "cpu":  # one by one
        back += 2 * (attention and step.is_split("attention/key"))
        back += mlp and step.model.activation == "swiglu"
    if step.recomputes:
        back += attention
    count = there * passes.forward + back * passes.backward
    if passes.forward > passes.backward and step.model.unroll >= passes.here:
        # Run forward again to go back, the last layer's result is of no use: out of a loop XLA
        # leaves it out.
        count -= mlp * passes.ticks_back
    formula = f"{there} · 2 A (n-1)/n a layer, and {back} back"
    yield _sum(step, ("tensor",), "activations", formula, count * step.activation)


def _vocabulary(step: Step, passes: Passes) -> Iterator[Expected]:
    """Where the table's rows and the head's columns are split: embedding, logits and loss."""
    table = step.learner.abstract_state.parameters["embedding"]
    if "tensor" not in axes_of_spec(table.sharding.spec):
        return
    devices, stages = step.mesh["tensor"], step.mesh["stage"]
    yield _sum(
        step,
        ("tensor",),
        "embedding",
        "2 A (n-1)/n a microbatch",
        passes.embeds * step.activation,
    )
    own = step.microbatches * step.tokens * 4 / stages  # bytes of a float32 for every token
    yield _sum(step, ("tensor",), "head", "2 A (n-1)/n back, in float32", own * step.width)
    again = 2 if stages > 1 else 0
    formula = "maximum, sum and target of the logits"
    yield _sum(step, ("tensor",), "loss", formula, (3 + again) * own)
    share = 2 * own * devices * wire_share("all-gather", devices)
    yield Expected("all-gather", ("tensor",), "accuracy", "each part's likeliest token", share)


def _context(step: Step, passes: Passes) -> Iterator[Expected]:
    devices, model = step.mesh["context"], step.model
    if devices == 1:
        return
    heads = model.key_value_heads or model.heads
    heads = math.lcm(heads, step.mesh["tensor"]) // step.mesh["tensor"]
    keys = step.tokens * heads * model.size_of_head * step.itemsize  # K; as many for values
    recomputed = passes.backward if step.recomputes else 0
    if model.context_parallelism == "ring":
        there, back = 2 * (devices - 1), 2 * (devices - 1) + 2 * devices
        count = there * (passes.forward + recomputed) + back * passes.backward
        formula = f"{there} K a layer, and {back} K back"
        yield Expected("collective-permute", ("context",), "a ring of keys", formula, count * keys)
        return
    whole = 2 * keys * (devices - 1)
    formula = "2 K (n-1)"
    count = passes.forward + recomputed
    yield Expected("all-gather", ("context",), "keys and values", formula, count * whole)
    yield Expected(
        "reduce-scatter", ("context",), "their gradients", formula, passes.backward * whole
    )


def _experts(step: Step, passes: Passes) -> Iterator[Expected]:
    devices, model = step.mesh["expert"], step.model
    if devices == 1:
        return
    (sequence,), k = step.learner.specification.shape, model.experts_per_token
    if model.capacity_factor is not None:
        places = capacity_of(model.capacity_factor, sequence, k, model.experts) * model.experts
        places *= step.tokens // sequence
    else:  # as many as could be chosen at worst
        places = devices * step.tokens * min(k, model.experts // devices)
    count = 2 * passes.forward + (4 if step.recomputes else 2) * passes.backward
    payload = count * places * step.width * step.itemsize
    share = payload * wire_share("all-to-all", devices)
    formula = "E (n-1)/n, twice a layer, and twice back"
    yield Expected("all-to-all", ("expert",), "places at experts", formula, share)


def _stages(step: Step, passes: Passes) -> Iterator[Expected]:
    stages = step.mesh["stage"]
    if stages == 1:
        return
    senders = stages if step.pipeline.rounds_of(stages) > 1 else stages - 1
    sent = (passes.ticks + passes.ticks_back) * step.activation * senders / stages
    formula = f"{passes.ticks} + {passes.ticks_back} ticks · A {senders}/{stages}"
    yield Expected("collective-permute", ("stage",), "from stage to stage", formula, sent)
    shared = 2 * step.microbatches * step.activation * (stages - 1) / stages**2
    formula = f"2 · {step.microbatches} · A (S-1)/S²"
    yield Expected("collective-permute", ("stage",), "to share the head's work", formula, shared)
