"""A pipeline: every stage holds some layers, and microbatches pass from stage to stage.

`research.parallel.schedules` says in tables who does what when. Here one device's part of that is
plain code: it is written for one stage and one `data` part of the mesh (both axes manual in a
partial `shard_map`), and left to the partitioner in all other axes. In every tick a stage takes
what it was sent, or at the first stage a new microbatch, runs its layers, and sends the result on.

What crosses the wire over `stage`, for activations of A bytes a microbatch:

    A             every tick, in collective-permutes from each stage to the next; as much on the
                  way back, for the gradients of the activations
    A·(S-1)/S     a microbatch, from the last stage to the others: each computes logits and loss of
                  its own part of the tokens, so that the head's work is shared; as much on the way
                  back
    gradients     of what all stages have (embedding, last norm, head): one all-reduce a step

Weights never cross it, and no gradient is reduced before the last tick. An idle stage computes on
zeros or on what it has: it could only wait otherwise, and nothing of it reaches the loss.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from research.parallel.layout import into_microbatches
from research.parallel.schedules import IDLE, Schedule

Tree = Any
Batch = dict[str, jax.Array]
Own = Callable[[jax.Array], jax.Array]

MANUAL = frozenset({"stage", "data"})
"""Mesh axes for which the code here says itself what each device does."""


class Sums(NamedTuple):
    """What a part of the model yields beside activations, summed over examples."""

    objective: jax.Array  # [] float32: what is differentiated
    report: Tree  # of arrays


class Staged(NamedTuple):
    """A model in the three parts that a pipeline needs. Activations are [rows, sequence, width]."""

    enter: Callable[[Tree, Batch], jax.Array]
    """`enter(shared, microbatch)`: the activations that the first layer reads."""
    run: Callable[[Tree, jax.Array, Batch, jax.Array], tuple[jax.Array, Sums]]
    """`run(layers, activations, microbatch, first)`: through layers of which the first has number
    `first`."""
    leave: Callable[[Tree, jax.Array, Batch, Own], Sums]
    """`leave(shared, activations, microbatch, own)`: the loss of this stage's part of the tokens;
    `own` takes that part of any array [rows, sequence, ...]."""


class Place(NamedTuple):
    """Where in the pipeline this device is, and what it holds."""

    schedule: Schedule
    stage: jax.Array  # [] int32
    layers: Tree  # [rounds, layers a round, ...] each
    shared: Tree
    batch: Batch  # [microbatches, rows, ...] each

    def microbatch(self, number: Any) -> Batch:
        return jax.tree.map(lambda leaf: leaf[number], self.batch)

    def of_round(self, number: Any) -> Tree:
        """The layers that this stage runs in a round."""
        if self.schedule.rounds == 1:
            return jax.tree.map(lambda leaf: leaf[0], self.layers)
        return jax.tree.map(lambda leaf: leaf[number], self.layers)

    def first_layer(self, number: Any) -> jax.Array:
        """Number of the first of those in the whole model."""
        count = jax.tree.leaves(self.layers)[0].shape[1]
        return (number * self.schedule.stages + self.stage) * count

    @property
    def is_first(self) -> jax.Array:
        return self.stage == 0

    def own(self, array: jax.Array) -> jax.Array:
        """This stage's tokens of an `array` [rows, sequence, ...] that all stages have."""
        return _parts(array, self.schedule.stages, axis=1)[:, :, self.stage]


def forward(staged: Staged, place: Place) -> Sums:
    """All microbatches through the stages, as `place.schedule.forward` says: this device's share
    of the sums. Its gradient goes back through the same ticks in the opposite order, with the
    memory of all microbatches at once."""
    schedule = place.schedule
    template = activations(staged, place)

    def tick(carry: Any, row: jax.Array) -> tuple[Any, jax.Array]:
        received, sums = carry
        y, more = run_unit(staged, place, row[place.stage], received)
        return (send_on(y, schedule), add(sums, more)), y

    nothing = zeros(jax.eval_shape(lambda x: run_unit(staged, place, jnp.int32(0), x)[1], template))
    rows = jnp.asarray(schedule.forward[: schedule.exits.max() + 1])
    (_, sums), outputs = jax.lax.scan(tick, (zeros(template), nothing), rows)
    parts = spread(outputs[schedule.exits], place)  # [microbatches, rows, own sequence, width]

    # One microbatch at a time, and again on the way back: logits are the largest arrays there are.
    @jax.checkpoint
    def leave(sums: Sums, part_and_number: tuple[jax.Array, jax.Array]) -> tuple[Sums, None]:
        part, number = part_and_number
        more = staged.leave(place.shared, part, place.microbatch(number), place.own)
        return add(sums, more), None

    nothing = zeros(jax.eval_shape(leave, None, (parts[0], jnp.int32(0)))[0])
    left, _ = jax.lax.scan(leave, nothing, (parts, jnp.arange(schedule.microbatches)))
    return Sums(sums.objective + left.objective, (sums.report, left.report))


def run_unit(
    staged: Staged, place: Place, unit: jax.Array, received: jax.Array
) -> tuple[jax.Array, Sums]:
    """One stage's work of one tick: activations after its layers, and their sums (0 if idle)."""
    schedule, busy = place.schedule, unit != IDLE
    unit = jnp.maximum(unit, 0)
    batch, number = place.microbatch(schedule.microbatch(unit)), schedule.round(unit)
    entering = place.is_first & (number == 0)
    x = jnp.where(entering, staged.enter(place.shared, batch), received)
    y, sums = staged.run(place.of_round(number), x, batch, place.first_layer(number))
    return y, where(busy, sums)


def activations(staged: Staged, place: Place) -> Any:
    """Shape and type of what stages hand on."""
    return jax.eval_shape(lambda: staged.enter(place.shared, place.microbatch(jnp.int32(0))))


# What moves -----------------------------------------------------------------------------------


def send_on(y: jax.Array, schedule: Schedule) -> jax.Array:
    """To the next stage; from the last to the first where there is another round."""
    stages = schedule.stages
    steps = [(stage, stage + 1) for stage in range(stages - 1)]
    if schedule.rounds > 1:
        steps.append((stages - 1, 0))
    return jax.lax.ppermute(y, "stage", steps)


def send_back(gradient: jax.Array, schedule: Schedule) -> jax.Array:
    """To the stage before."""
    return jax.lax.ppermute(gradient, "stage", [(s, s - 1) for s in range(1, schedule.stages)])


def spread(x: jax.Array, place: Place) -> jax.Array:
    """The last stage's activations [..., sequence, width], of which each stage gets its own part
    [..., sequence / stages, width]: stage i every token with number i modulo the stages, so that a
    sequence split over `context` is not moved."""
    stages = place.schedule.stages
    parts = _parts(x, stages, axis=x.ndim - 2)  # [..., sequence / stages, stages, width]
    mine = jnp.where(place.stage == stages - 1, parts[..., stages - 1, :], 0)
    for to in range(stages - 1):
        mine = mine + jax.lax.ppermute(parts[..., to, :], "stage", [(stages - 1, to)])
    return mine


def _parts(array: jax.Array, stages: int, axis: int) -> jax.Array:
    shape = array.shape
    return array.reshape(*shape[:axis], shape[axis] // stages, stages, *shape[axis + 1 :])


# Trees of sums --------------------------------------------------------------------------------


def zeros(shapes: Tree) -> Tree:
    """Arrays of zeros of the shapes and types of a tree."""
    return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)


def add(some: Tree, more: Tree) -> Tree:
    """`some` + `more`, leaf by leaf; `more` itself where `some` is None."""
    return more if some is None else jax.tree.map(jnp.add, some, more)


def where(condition: jax.Array, tree: Tree) -> Tree:
    """`tree` where the condition holds, else zeros."""
    return jax.tree.map(lambda leaf: jnp.where(condition, leaf, 0), tree)


# From the whole mesh to one device, and back --------------------------------------------------


class Gradients(NamedTuple):
    """Of the objective, like the parameters; or how those lie on the mesh."""

    layers: Tree
    shared: Tree


SPECS = Gradients(layers=P(None, "stage"), shared=P())


def on_stages(
    function: Callable[[Place], tuple[Gradients, Tree]],
    schedule: Schedule,
    layers: Tree,
    shared: Tree,
    batch: Batch,
) -> tuple[Gradients, Tree]:
    """What `function` returns for every device's place, gradients and sums, added up over the mesh.

    `layers` are [rounds, layers a round, ...] each, `batch` [batch, ...].
    """
    count = schedule.microbatches
    mesh = jax.sharding.get_abstract_mesh()
    parts_of_batch = tuple(axis for axis in ("data",) if mesh.shape[axis] > 1)

    def local(stage: jax.Array, layers: Tree, shared: Tree, batch: Batch) -> tuple[Gradients, Tree]:
        parts = jax.tree.map(lambda rows: into_microbatches(rows, count), batch)
        gradients, sums = function(Place(schedule, stage[0], layers, shared, parts))
        gradients = Gradients(
            jax.lax.psum(gradients.layers, parts_of_batch),
            jax.lax.psum(gradients.shared, ("stage", *parts_of_batch)),
        )
        return gradients, jax.lax.psum(sums, ("stage", *parts_of_batch))

    # As an array, not `axis_index`: that has no meaning to the partitioner of the other axes.
    numbers = jnp.arange(schedule.stages, dtype=jnp.int32)
    return jax.shard_map(
        local,
        in_specs=(P("stage"), *SPECS, P("data")),
        out_specs=(SPECS, P()),
        axis_names=MANUAL,
        check_vma=False,
    )(numbers, layers, shared, batch)
