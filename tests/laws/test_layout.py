"""Law 1: on every mesh, losses and gradients equal those of one device."""

import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.errors import UserError
from research.models import Specification, routing
from research.parallel.layout import LAYOUT
from research.parallel.mesh import MeshConfig
from research.parallel.schedules import PipelineConfig

# A mesh changes the order of float32 sums, and nothing else. A sum of n terms of one size that is
# taken in another order differs by about sqrt(n) · 2^-24 of it: 1e-6 for the 256 targets of a
# batch. Every update adds its share to what the next step starts from, Adam (the commands) more
# than SGD. Measured in the table below: 6e-7.
RELATIVE = 2e-5
# Of a parameter's gradients, relative to the largest of them: those near zero are sums that cancel.
# The depth of ResNet-18, forward and backward, makes ten times as much of it. Measured: 7e-6.
GRADIENTS = 5e-5


# An activation on the other side of a kink changes a gradient by its own share of it. A mistake in
# the layout does so in every batch: one of four has to hold the tolerance above, and all this one.
KINKED = 0.1


def assert_equal_traces(trace: Any, expected: Any, kinked: bool = False) -> None:
    errors = []
    for step, ((loss, its), (wanted, whose)) in enumerate(zip(trace, expected, strict=True), 1):
        assert loss == pytest.approx(wanted, rel=RELATIVE), f"loss of step {step}"
        assert jax.tree.structure(its) == jax.tree.structure(whose)
        errors.append(worst(its, whose))
    if kinked:
        assert min(errors)[0] <= GRADIENTS and max(errors)[0] <= KINKED, errors
    else:
        assert max(errors)[0] <= GRADIENTS, errors


def worst(gradients: Any, expected: Any) -> tuple[float, str]:
    """Largest error in any parameter's gradients, relative to the largest of them; and which."""
    errors = []
    for (path, leaf), other in zip(
        jax.tree_util.tree_leaves_with_path(gradients), jax.tree.leaves(expected), strict=True
    ):
        # A bias before a softmax over keys has no gradient: all of it is rounding.
        largest = max(np.abs(other).max(), 1e-7 / GRADIENTS)
        errors.append((float(np.abs(leaf - other).max() / largest), jax.tree_util.keystr(path)))
    return max(errors)


def test_losses_and_gradients_equal_those_of_one_device(
    case: Any, mesh: MeshConfig, run_or_skip: Any, alone: Any
) -> None:
    run = run_or_skip(case, mesh)
    expected = alone(case)
    assert_equal_traces(run.trace(expected.initial), expected.trace, case.kinked)
    # Training went somewhere: the law is not held by standing still.
    losses = [loss for loss, _ in expected.trace]
    assert max(losses) - min(losses) > 1e-3
    # What no gradient would tell apart: BatchNorm's averages are those of the global batch.
    assert jax.tree.structure(run.state.buffers) == jax.tree.structure(expected.buffers)
    for leaf, other in zip(
        *map(jax.tree.leaves, (run.state.buffers, expected.buffers)), strict=True
    ):
        np.testing.assert_allclose(leaf, other, rtol=1e-4, atol=1e-6)
    totals = run.evaluate()
    assert totals.loss == pytest.approx(expected.totals.loss, rel=RELATIVE)
    shape = case.batches(1)[0]["targets"].shape
    assert totals.targets == (shape[0] - 3) * math.prod(shape[1:])  # padding is not counted


@pytest.mark.parametrize("name", ["gpt2", "mlp"])
def test_a_seed_initializes_the_same_on_every_mesh(
    name: str, mesh: MeshConfig, table: Any, run: Any, alone: Any
) -> None:
    case = table[name]
    if mesh.expert > 1:
        case = table["mixture"]
    elif mesh.tensor * mesh.context > 1 and name == "mlp":
        case = table["llama"]
    initial = run(case, mesh).init()
    for leaf, other in zip(*map(jax.tree.leaves, (initial, alone(case).initial)), strict=True):
        # The draws are the same bits; the functions that shape them may be fused differently.
        np.testing.assert_allclose(leaf, other, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("layers", [2, 4])
@pytest.mark.parametrize("name", ["mixture", "mixture-dropless"])
def test_no_choice_of_experts_hangs_on_rounding(
    name: str, layers: int, table: Any, deep: Any, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The table's batches are fit to hold the law: another mesh makes the same choices."""
    case = table[name] if layers == 2 else deep(name)
    plain, gaps = routing.route, []

    def watched(x: jax.Array, router: jax.Array, k: int) -> routing.Routing:
        made = plain(x, router, k)
        falling = jnp.sort(made.probabilities, axis=-1, descending=True)
        # Between each of the chosen, which are seated in turn, and the next.
        gap = jnp.min(falling[..., :k] - falling[..., 1 : k + 1])
        jax.debug.callback(lambda gap: gaps.append(float(gap)), gap)
        return made

    monkeypatch.setattr(routing, "route", watched)
    one = run(case, MeshConfig(), devices=1)
    one.trace(one.init())
    jax.effects_barrier()
    assert len(gaps) >= 4 * layers
    assert min(gaps) > 100 * 2**-24


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_gathered_keys_and_values_change_nothing_either(
    name: str, table: Any, run: Any, alone: Any
) -> None:
    """On the meshes of the table a split sequence is attended to by a ring; here not."""
    expected = alone(table[name])
    case = replace(table[name], model=replace(table[name].model, context_parallelism="gather"))
    here = run(case, MeshConfig(data=1, fsdp=2, context=4))
    assert_equal_traces(here.trace(expected.initial, 2), expected.trace[:2])
    assert here.evaluate().targets == 13 * 16


def test_one_head_of_keys_for_four_devices_stays_whole(table: Any, run: Any, alone: Any) -> None:
    case = replace(table["llama"], model=replace(table["llama"].model, key_value_heads=1))
    here = run(case, MeshConfig(data=2, tensor=4))
    expected = alone(case)
    assert_equal_traces(here.trace(expected.initial, 2), expected.trace[:2])
    attention = here.state.parameters["blocks"]["attention"]
    assert attention["query"]["kernel"].sharding.spec[2] == "tensor"
    assert attention["key"]["kernel"].sharding.is_fully_replicated
    # Neither 65 characters nor 341 hidden units divide by 4.
    assert here.state.parameters["head"].sharding.is_fully_replicated
    assert here.state.parameters["blocks"]["mlp"]["up"]["kernel"].sharding.is_fully_replicated


@pytest.mark.parametrize("name", ["gpt2", "mlp", "mixture"])
@pytest.mark.parametrize("mesh_config", [MeshConfig(data=2), MeshConfig(data=1, fsdp=2)])
def test_microbatches_add_up_to_the_whole_batch(
    name: str, mesh_config: MeshConfig, table: Any, run: Any, alone: Any
) -> None:
    case = table[name]
    assert case.model.dropout > 0  # an example draws the same, in whatever microbatch it is
    whole = run(case, MeshConfig(), devices=1)
    initial = whole.init()
    parts = run(case, mesh_config, devices=2, microbatches=4)
    assert_equal_traces(parts.trace(initial, 2), whole.trace(initial, 2))


def test_microbatches_add_up_where_the_sequence_is_split(table: Any, run: Any, alone: Any) -> None:
    """The loop over them is written for one `data` part: the ring goes round inside it."""
    expected = alone(table["gpt2"])
    parts = run(table["gpt2"], MeshConfig(data=2, context=2), devices=4, microbatches=4)
    assert_equal_traces(parts.trace(expected.initial, 2), expected.trace[:2])


@pytest.mark.parametrize("name", ["gpt2", "llama", "mixture", "mixture-dropless"])
def test_a_pipeline_learns_what_one_device_learns(
    name: str, pipeline: Any, run_or_skip: Any, run: Any, deep: Any, alone: Any
) -> None:
    case = deep(name)
    here = run_or_skip(
        case, pipeline.mesh, microbatches=pipeline.microbatches, pipeline=pipeline.config
    )
    expected = alone(case)
    # A seed initializes the same, in rounds or not; and so the traces may start from it.
    initial = here.init()
    for leaf, other in zip(*map(jax.tree.leaves, (initial, expected.initial)), strict=True):
        np.testing.assert_allclose(leaf.reshape(other.shape), other, rtol=1e-6, atol=1e-9)
    rounds = here.learner.in_rounds
    trace = [(loss, rounds(gradients)) for loss, gradients in expected.trace]
    assert_equal_traces(here.trace(initial, 3), trace[:3])
    again = run(case, MeshConfig(), devices=1)
    again.trace(expected.initial, 3)
    assert here.evaluate().loss == pytest.approx(again.evaluate().loss, rel=RELATIVE)


@pytest.mark.parametrize(
    ("name", "mesh_config"),
    [
        ("llama", MeshConfig(data=2, fsdp=2, tensor=2)),
        ("llama", MeshConfig(data=1, fsdp=2, context=2, tensor=2)),
        ("mixture", MeshConfig(data=1, expert=2, fsdp=2, tensor=2)),
        ("mixture-dropless", MeshConfig(data=1, expert=2, fsdp=2, tensor=2)),
    ],
)
def test_bfloat16_computes_over_float32_parameters(
    name: str, mesh_config: MeshConfig, table: Any, run: Any, alone: Any
) -> None:
    case = table[name]
    case = replace(case, model=replace(case.model, dtype="bfloat16", attention="xla"))
    short = run(case, mesh_config)
    expected = alone(table[name])
    trace = short.trace(expected.initial)
    for leaf in jax.tree.leaves((short.state.parameters, short.state.optimizer)):
        assert leaf.dtype in (np.float32, np.int32)
    for (loss, _), (wanted, _) in zip(trace, expected.trace, strict=True):
        # 8 bits of mantissa: products are off by 2^-9, a mean of 256 losses by less than 1 %.
        assert loss == pytest.approx(wanted, rel=0.01)
        assert loss != wanted


# Replicas that differ -------------------------------------------------------------------------


def norm(tree: Any) -> float:
    return float(
        np.sqrt(sum(np.sum(leaf.astype(np.float64) ** 2) for leaf in jax.tree.leaves(tree)))
    )


def test_replicas_learn_on_a_mesh_what_they_learn_on_one_device(replicas: Any) -> None:
    """Gradients are those of every replica: [replicas, ...] each."""
    alone = replicas.run(MeshConfig())
    initial = alone.init()
    trace = alone.trace(initial)
    here = replicas.run()
    its_trace = here.trace(initial)
    states = [jax.device_get(run.state).replicas for run in (here, alone)]
    if replicas.rounds:  # a number here or there is on another level, and nearly all are not
        assert [loss for loss, _ in its_trace] == pytest.approx([x for x, _ in trace], rel=1e-3)
        apart = jax.tree.map(np.subtract, states[0].parameters, states[1].parameters)
        moved = jax.tree.map(np.subtract, states[1].parameters, initial.replicas.parameters)
        assert norm(apart) <= 0.02 * norm(moved)
    else:
        assert_equal_traces(its_trace, trace)
        # What gradients do not tell: where an exchange left parameters, and what it remembers.
        for part in ("parameters", "exchange"):
            mine, its = (getattr(state, part) for state in states)
            assert not jax.tree.leaves(its) or worst(mine, its)[0] <= GRADIENTS
        assert here.evaluate().loss == pytest.approx(alone.evaluate().loss, rel=RELATIVE)
    # Every replica has data of its own, or there would be nothing to exchange.
    gradients = jax.tree.leaves(trace[0][1])[-1]
    exchange = replicas.exchange
    averaged = exchange.rule in ("every_step", "adasum") or bool(exchange.first_local_step)
    assert (np.ptp(gradients, axis=0).max() > 1e-4) != averaged


def test_a_server_learns_on_a_mesh_what_it_learns_on_one_device(workers: Any) -> None:
    """Gradients are those that the optimizer got: late, compensated, thinned out."""
    alone = workers.run(MeshConfig(data=1))
    initial = alone.init()
    trace = alone.trace(initial)
    here = workers.run()
    assert_equal_traces(here.trace(initial), trace)
    mine, its = (jax.device_get(run.state) for run in (here, alone))
    for part in ("parameters", "rule", "fetched"):
        if jax.tree.leaves(getattr(its, part, ())):
            assert worst(getattr(mine, part), getattr(its, part))[0] <= GRADIENTS
    assert here.evaluate().loss == pytest.approx(alone.evaluate().loss, rel=RELATIVE)


def test_members_learn_on_a_mesh_what_they_learn_on_one_device(members: Any) -> None:
    """Gradients are those of every member, each clipped by its own norm and no other's."""
    alone = members.run(MeshConfig(data=1))
    initial = alone.init()
    here = members.run()
    for leaf, other in zip(*map(jax.tree.leaves, (here.init(), initial)), strict=True):
        # The draws are the same bits; near 0 the functions that shape them cancel.
        np.testing.assert_allclose(leaf, other, rtol=1e-6, atol=1e-7)
    trace = alone.trace(initial)
    assert_equal_traces(here.trace(initial), trace)
    mine, its = (jax.device_get(run.state) for run in (here, alone))
    assert worst(mine.parameters, its.parameters)[0] <= GRADIENTS
    assert here.evaluate().loss == pytest.approx(alone.evaluate().loss, rel=RELATIVE)
    if members.rule == "deep":  # every member has a start and data of its own
        assert np.ptp(jax.tree.leaves(trace[0][1])[-1], axis=0).max() > 1e-4
        largest = max(jax.tree.leaves(initial.parameters), key=np.size)
        assert np.ptp(largest, axis=0).max() > 1e-2


# Sizes that do not divide ---------------------------------------------------------------------


def test_heads_that_do_not_divide_name_those_that_do(table: Any, run: Any) -> None:
    mesh = MeshConfig(data=2, tensor=4)
    case = table["gpt2"]
    with pytest.raises(UserError) as error:
        run(replace(case, model=replace(case.model, width=36, heads=6)), mesh)
    sentence = str(error.value)
    assert "heads 6 does not divide over tensor = 4: use heads 4 or 8" in sentence
    assert "or a mesh with tensor = 2" in sentence
    for heads in (4, 8):
        run(replace(case, model=replace(case.model, width=8 * heads, heads=heads)), mesh)
    smaller = MeshConfig(data=4, tensor=2)
    run(replace(case, model=replace(case.model, width=36, heads=6)), smaller)


def test_a_batch_that_does_not_divide_names_those_that_do(table: Any, run: Any, alone: Any) -> None:
    mesh = MeshConfig(data=4, fsdp=2)
    with pytest.raises(UserError) as error:
        run(replace(table["linear"], batch=12), mesh)
    sentence = str(error.value)
    assert "batch 12 does not divide over data × fsdp = 8: use batch 8 or 16" in sentence
    assert "data × fsdp = 4" in sentence
    initial = alone(table["linear"]).initial
    for batch in (8, 16):
        run(replace(table["linear"], batch=batch), mesh).trace(initial, 1)
    smaller = MeshConfig(data=2, fsdp=2)
    run(replace(table["linear"], batch=12), smaller, devices=4).trace(initial, 1)


@pytest.mark.parametrize(
    ("form", "length", "context", "product", "lengths", "smaller"),
    [
        ("ring", 100, 4, "context 4 × 2 chunks = 8", "96 or 104", 2),
        ("ring", 16, 8, "", "", None),
        ("ring", 8, 8, "context 8 × 2 chunks = 16", "16", 4),
        ("ring", 33, 2, "context 2 × 2 chunks = 4", "32 or 36", 1),
        ("gather", 100, 8, "context 8", "96 or 104", 4),
        ("gather", 8, 8, "", "", None),
    ],
)
def test_a_sequence_that_does_not_divide_names_those_that_do(
    form: str,
    length: int,
    context: int,
    product: str,
    lengths: str,
    smaller: int | None,
    table: Any,
    run: Any,
) -> None:
    case = replace(
        table["llama"],
        model=replace(table["llama"].model, context_parallelism=form),
        specification=Specification((length,), 65),
    )
    mesh = MeshConfig(data=8 // context, context=context)
    if smaller is None:
        run(case, mesh)
        return
    with pytest.raises(UserError) as error:
        run(case, mesh)
    assert str(error.value) == (
        f"{product} does not divide the sequence of {length} tokens: use --data.context {lengths}, "
        f"or --mesh.context {smaller}"
    )
    run(case, MeshConfig(data=8 // smaller, context=smaller))  # the way out is one
    for fitting in lengths.split(" or "):
        run(replace(case, specification=Specification((int(fitting),), 65)), mesh)


def test_a_tensor_axis_that_nothing_uses_is_refused(table: Any, run: Any) -> None:
    with pytest.raises(UserError, match=r"split over `tensor` = 4: set --mesh.tensor 1"):
        run(table["linear"], MeshConfig(data=2, tensor=4))


def test_axes_that_no_algorithm_here_uses_are_refused(table: Any, run: Any) -> None:
    with pytest.raises(UserError, match="split over `replica` = 2: set --mesh.replica 1"):
        run(table["gpt2"], MeshConfig(replica=2))
    with pytest.raises(UserError, match="split over `expert` = 2: set --mesh.expert 1"):
        run(table["gpt2"], MeshConfig(expert=2))
    with pytest.raises(UserError, match="split over `context` = 2: set --mesh.context 1"):
        run(table["mlp"], MeshConfig(context=2))
    with pytest.raises(UserError, match="split over `stage` = 2: set --mesh.stage 1"):
        run(table["mlp"], MeshConfig(stage=2))


def test_layers_and_tokens_that_do_not_divide_over_stages_are_named(deep: Any, run: Any) -> None:
    case = deep("gpt2")
    six = replace(case, model=replace(case.model, layers=6))
    mesh = MeshConfig(stage=4, data=2)
    with pytest.raises(UserError, match="layers 6 does not divide over stage = 4: use layers 4 or"):
        run(six, mesh, microbatches=4)
    rounds = PipelineConfig("interleaved", 2)
    with pytest.raises(
        UserError, match="layers 6 do not divide over stage 4 × 2 rounds = 8: use .*layers 8"
    ):
        run(six, mesh, microbatches=4, pipeline=rounds)
    with pytest.raises(UserError, match="2 microbatches are fewer than the 4 stages"):
        run(case, mesh, microbatches=2)
    short = replace(case, specification=Specification((18,), 65))
    with pytest.raises(UserError, match="18 tokens do not divide over stage 4 = 4: .* 16 or 20"):
        run(short, mesh, microbatches=4)


# Parameters that are never whole --------------------------------------------------------------

LARGE = 2048  # elements; 8 times the largest that the layout leaves whole here


def test_fsdp_holds_an_eighth_of_every_large_array_from_the_start(table: Any, run: Any) -> None:
    """Initialization is created sharded: neither its result nor any value inside it is whole."""
    learner = run(table["gpt2"], MeshConfig(data=1, fsdp=8)).learner
    with jax.set_mesh(learner.mesh):
        compiled = learner.init.lower().compile()
        state = learner.init()
    large = [leaf for leaf in jax.tree.leaves(state) if leaf.size >= LARGE]
    assert len(large) > 12  # parameters, and two moments of each
    for leaf in large:
        assert leaf.addressable_shards[0].data.size == leaf.size // 8
    whole = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    small = sum(leaf.nbytes for leaf in jax.tree.leaves(state) if leaf.size < LARGE)
    output = compiled.memory_analysis().output_size_in_bytes
    assert output <= (whole - small) / 8 + small + 4096  # tuple tables

    shapes = {leaf.shape for leaf in large}
    made = {
        tuple(map(int, s.split(","))) for s in re.findall(r"\bf32\[([\d,]+)\]", compiled.as_text())
    }
    assert not shapes & made


def test_fsdp_still_holds_an_eighth_after_a_step(table: Any, run: Any, alone: Any) -> None:
    here = run(table["gpt2"], MeshConfig(data=1, fsdp=8))
    here.trace(alone(table["gpt2"]).initial, 1)
    for leaf in jax.tree.leaves((here.state.parameters, here.state.optimizer)):
        if leaf.size >= LARGE:
            assert leaf.addressable_shards[0].data.size == leaf.size // 8


def test_what_the_models_name_is_in_the_layout(case: Any) -> None:
    """A misspelled logical axis would be a KeyError deep inside a model."""
    from flax import nnx

    abstract = nnx.eval_shape(lambda: case.model.build(case.specification, jax.random.key(0)))
    for _, variable in nnx.to_flat_state(nnx.state(abstract, nnx.Param)):
        for name in variable.get_metadata().get("axes") or ():
            assert name is None or name in LAYOUT


# Several processes ----------------------------------------------------------------------------


@pytest.mark.distributed
def test_four_processes_learn_what_one_process_and_one_device_learn(
    config: Path, tmp_path: Path, research: Any, losses: Callable[[Path], dict[int, float]]
) -> None:
    mesh = ["--mesh.data", 2, "--mesh.fsdp", 2, "--mesh.tensor", 2]
    steps = ["--run.steps", 6]

    def directory(name: str) -> list[object]:
        return ["--run.directory", tmp_path / name]

    research("train", config, "--cpu-devices", 1, *steps, *directory("alone"))
    research("train", config, "--cpu-devices", 8, *mesh, *steps, *directory("one"))
    words = ["train", config, "--cpu-devices", 2, *mesh, *steps, *directory("four")]
    research("launch", "--processes", 4, "--", *words)
    alone, one, four = (losses(tmp_path / name) for name in ("alone", "one", "four"))
    assert len(alone) == 6
    assert one == pytest.approx(alone, rel=RELATIVE)
    assert four == pytest.approx(one, rel=RELATIVE)
    environment = json.loads((tmp_path / "four" / "environment.json").read_text())
    assert (environment["processes"], environment["devices"]) == (4, 8)
