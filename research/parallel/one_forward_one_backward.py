"""1F1B: a microbatch goes backward as soon as it is through all stages.

Narayanan et al. 2019, *PipeDream: generalized pipeline parallelism for DNN training*, SOSP; with
the flush of Narayanan et al. 2021, arXiv:2006.09503: all gradients of a step are of the same
weights.

Differentiating a loop gives all forward ticks, then all backward ones. So the backward pass is
written out here: a tick of `Schedule.forward` and `Schedule.backward` runs up to three parts,

    forward    x = what was sent, kept in a ring of 2·S - 1 microbatches;  y = layers(x), sent on
    loss       of the microbatch that has just left the last stage: every stage its part of the
               tokens
    backward   dy = what was sent, or at the last stage the gradient of that loss; the layers run
               again from the kept x, and dx is sent back

and gradients are added up as they come. The memory of a stage is that of its ring and of one
microbatch's layers, however many microbatches there are.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from research.parallel.layout import constrain
from research.parallel.pipeline import (
    Gradients,
    Place,
    Staged,
    activations,
    add,
    run_unit,
    send_back,
    send_on,
    spread,
    where,
    zeros,
)
from research.parallel.schedules import IDLE, Phase

Tree = Any


class Carry(NamedTuple):
    """What a stage has between two ticks."""

    received: jax.Array  # [rows, sequence, width] activations from the stage before
    gradient: jax.Array  # of what this stage sent on, from the stage after
    kept: jax.Array  # [ring, rows, sequence, width] inputs that wait for their way back
    gradients: Gradients
    ran: Any  # sums of the layers
    left: Any  # sums of the loss


def gradients(staged: Staged, place: Place) -> tuple[Gradients, Tree]:
    """This device's share of the gradients and reports, by the ticks of `place.schedule`."""
    schedule = place.schedule
    like = activations(staged, place)
    x = zeros(like)
    ring = schedule.kept
    carry = Carry(
        received=x,
        gradient=x,
        kept=constrain(jnp.zeros((ring, *x.shape), x.dtype), None, "batch", "sequence", None),
        gradients=Gradients(zeros(place.layers), zeros(place.shared)),
        ran=zeros(jax.eval_shape(lambda: run_unit(staged, place, jnp.int32(0), x)[1].report)),
        left=zeros(jax.eval_shape(lambda: _leave(staged, place, x, jnp.int32(0))[0])),
    )
    for phase in schedule.phases:
        rows = jnp.asarray(schedule.forward[phase.first : phase.last])
        rows_back = jnp.asarray(schedule.backward[phase.first : phase.last])
        carry, _ = jax.lax.scan(partial(_tick, staged, place, phase), carry, (rows, rows_back))
    return carry.gradients, (carry.ran, carry.left)


def _tick(
    staged: Staged, place: Place, phase: Phase, carry: Carry, units: tuple[jax.Array, jax.Array]
) -> tuple[Carry, None]:
    there, back = units[0][place.stage], units[1][place.stage]
    if phase.forward:
        carry, y = _forward(staged, place, carry, there)
    if phase.forward and phase.backward:
        carry = _loss(staged, place, carry, y, units[0][-1])
    if phase.backward:
        carry = _backward(staged, place, carry, back)
    return carry, None


def _forward(
    staged: Staged, place: Place, carry: Carry, unit: jax.Array
) -> tuple[Carry, jax.Array]:
    slot = jnp.maximum(unit, 0) % len(carry.kept)
    kept = jnp.where(unit == IDLE, carry.kept[slot], carry.received)
    y, sums = run_unit(staged, place, unit, carry.received)
    carry = carry._replace(
        received=send_on(y, place.schedule),
        kept=carry.kept.at[slot].set(kept),
        ran=add(carry.ran, sums.report),
    )
    return carry, y


def _loss(staged: Staged, place: Place, carry: Carry, y: jax.Array, unit: jax.Array) -> Carry:
    """The loss of the microbatch that the last stage has run in this tick, and its gradients."""
    report, shared, gradient = _leave(staged, place, y, jnp.maximum(unit, 0))
    of_layers, of_shared = carry.gradients
    return carry._replace(
        # The last stage was sent nothing; the others find nothing here.
        gradient=carry.gradient + gradient,
        gradients=Gradients(of_layers, add(of_shared, shared)),
        left=add(carry.left, report),
    )


def _leave(
    staged: Staged, place: Place, y: jax.Array, microbatch: jax.Array
) -> tuple[Tree, Tree, jax.Array]:
    """Report, gradient of the shared parameters, and at the last stage the gradient of `y`."""
    batch = place.microbatch(microbatch)

    def objective(shared: Tree, y: jax.Array) -> tuple[jax.Array, Tree]:
        return staged.leave(shared, spread(y, place), batch, place.own)

    (shared, of_y), report = jax.grad(objective, argnums=(0, 1), has_aux=True)(place.shared, y)
    return report, shared, of_y


def _backward(staged: Staged, place: Place, carry: Carry, unit: jax.Array) -> Carry:
    busy, slot = unit != IDLE, jnp.maximum(unit, 0) % len(carry.kept)

    def run(layers: Tree, shared: Tree, received: jax.Array) -> tuple[jax.Array, jax.Array]:
        here = place._replace(layers=layers, shared=shared)
        y, sums = run_unit(staged, here, unit, received)
        return y, sums.objective

    _, pull = jax.vjp(run, place.layers, place.shared, carry.kept[slot])
    layers, shared, gradient = pull((where(busy, carry.gradient), busy.astype(jnp.float32)))
    return carry._replace(
        gradient=send_back(gradient, place.schedule),
        gradients=add(carry.gradients, Gradients(layers, shared)),
    )
