"""Law 4: the compiled step sends the bytes that theory states, and nothing else of that size."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from research.models import transformer
from research.parallel.collectives import collectives
from research.parallel.layout import constrain
from research.parallel.mesh import MeshConfig
from research.parallel.schedules import PipelineConfig
from research.planning.communication import expected
from research.planning.inspection import (
    SMALL,
    STATISTICS,
    WITHIN,
    Traffic,
    compiled_ticks,
    traffic,
)
from research.planning.step import Step

# The kinds of parallelism one by one, and together: mesh, model, microbatches, schedule.
ROWS: dict[str, tuple[MeshConfig, str, int, str]] = {
    "data8": (MeshConfig(data=8), "gpt2", 1, ""),
    "data8-microbatches": (MeshConfig(data=8), "llama", 2, ""),
    "fsdp8": (MeshConfig(data=1, fsdp=8), "gpt2", 1, ""),
    "fsdp8-recomputed": (MeshConfig(data=1, fsdp=8), "llama", 1, ""),
    "fsdp4-data2-microbatches": (MeshConfig(data=2, fsdp=4), "llama", 2, ""),
    "tensor4-data2": (MeshConfig(data=2, tensor=4), "gpt2", 1, ""),
    "tensor2-fsdp2-data2": (MeshConfig(data=2, fsdp=2, tensor=2), "llama", 1, ""),
    "gpipe-stage4-data2": (MeshConfig(stage=4, data=2), "gpt2", 8, "gpipe"),
    "interleaved-stage2-data4": (MeshConfig(stage=2, data=4), "gpt2", 4, "interleaved"),
    "1f1b-stage4-data2": (MeshConfig(stage=4, data=2), "gpt2", 8, "1f1b"),
    "1f1b-stage2-fsdp4": (MeshConfig(stage=2, data=1, fsdp=4), "llama", 4, "1f1b"),
    "1f1b-stage2-tensor4": (MeshConfig(stage=2, data=1, tensor=4), "gpt2", 4, "1f1b"),
    "ring-context4-data2": (MeshConfig(data=2, context=4), "llama", 1, ""),
    "expert4-data2": (MeshConfig(data=2, expert=4), "mixture", 1, ""),
    "expert4-data2-dropless": (MeshConfig(data=2, expert=4), "mixture-dropless", 1, ""),
}


def of_row(name: str, run: Any, deep: Any) -> tuple[list[Any], Step]:
    """The collectives of a row's compiled step, and what its theory is about."""
    mesh, model, microbatches, schedule = ROWS[name]
    case = deep(model)
    if model == "llama":
        # 341 hidden units divide by nothing: another law's concern. With these, layers outweigh the
        # embedding, which 1f1b gathers in every phase, or (JAX 0.12) once for all of them.
        case = replace(case, model=replace(case.model, hidden=256))
    if model.startswith("mixture"):  # where two axes split the batch, a table of positions is whole
        case = replace(case, model=replace(case.model, positions="rotary"))
    pipeline = PipelineConfig(schedule) if schedule else PipelineConfig()
    here = run(case, mesh, microbatches=microbatches, pipeline=pipeline)
    shape = jax.ShapeDtypeStruct((case.batch, 16), jnp.int32, sharding=here.sharding)
    with jax.set_mesh(here.mesh):
        lowered = here.learner.step.lower(
            here.learner.abstract_state, {"inputs": shape, "targets": shape}
        )
        text = lowered.compile().as_text()
    step = Step.of(here.learner, case.model, case.batch, pipeline)
    return collectives(text, step.mesh), step


def assert_as_stated(rows: list[Traffic]) -> None:
    total = sum(row.wire for row in rows)
    for row in rows:
        what = f"{row.kind} over {' × '.join(row.axes)}"
        if row.expected is None:  # norms and counts
            assert row.wire < WITHIN * total and row.payload <= row.calls * SMALL, (
                f"stray {what}: {row.wire:.0f} bytes, most of it from {row.largest}"
            )
        else:
            assert row.wire == pytest.approx(row.expected, rel=WITHIN, abs=STATISTICS), (
                f"{what}: {row.wire:.0f} bytes, {row.expected:.0f} by theory; {row.largest}"
            )


@pytest.mark.parametrize("name", ROWS)
def test_the_compiled_step_sends_what_theory_states(name: str, run: Any, deep: Any) -> None:
    found, step = of_row(name, run, deep)
    rows = list(traffic(found, expected(step)))
    assert_as_stated(rows)
    assert sum(row.wire for row in rows if row.expected) > 1e5
    if step.mesh["stage"] > 1:
        schedule = step.pipeline.build(step.mesh["stage"], step.microbatches)
        ticks = sum(
            (units >= 0).any() for table in (schedule.forward, schedule.backward) for units in table
        )
        # The last tick of a phase of one tick sends nothing: nobody is there to take it.
        alone = schedule.phases[-1].last - schedule.phases[-1].first == 1
        assert compiled_ticks(found, step) == ticks - alone


def test_fully_sharded_is_gathers_and_scatters_and_nothing_else_of_that_size(
    run: Any, deep: Any
) -> None:
    found, step = of_row("fsdp8-recomputed", run, deep)
    leaves = jax.tree.leaves(step.learner.abstract_state.parameters)
    whole = 4 * sum(leaf.size for leaf in leaves if "fsdp" in str(leaf.sharding.spec))
    large = [each for each in found if each.payload > 1024]  # more than two norms
    assert {each.kind for each in large} == {"all-gather", "reduce-scatter"}
    gathered = sum(each.calls * each.payload for each in large if each.kind == "all-gather")
    scattered = sum(each.calls * each.payload for each in large if each.kind == "reduce-scatter")
    head = 4 * 2 * 72 * 32  # embedding and head are gathered once: they are used in no loop
    assert gathered == 2 * whole - head
    assert scattered == whole


def test_replicated_gradients_are_reduced_together(run: Any, deep: Any) -> None:
    """Norms and biases of a layer, and what is no layer's, in one call each: not one by one."""
    found, _ = of_row("data8", run, deep)
    in_layers, outside = (
        [each for each in found if (each.calls > 1) == many and each.payload > 4]
        for many in (True, False)
    )
    assert len(in_layers) == 1 and in_layers[0].calls == 4
    assert len(outside) == 1


def stray_gather(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between layers, all tokens to every device."""
    block = transformer.Block.__call__

    def whole(self: Any, x: jax.Array, *others: Any) -> Any:
        x = jax.lax.with_sharding_constraint(x, jax.sharding.PartitionSpec())
        return block(self, constrain(x, "batch", "sequence", None), *others)

    monkeypatch.setattr(transformer.Block, "__call__", whole)


def stray_second_gather(monkeypatch: pytest.MonkeyPatch) -> None:
    """Left to the partitioner: once more where the forward pass is computed again."""
    monkeypatch.setattr(transformer, "gathered_module", lambda block, x, dtype: (block, x))


@pytest.mark.parametrize("stray", [stray_gather, stray_second_gather])
def test_a_stray_all_gather_breaks_the_law(
    stray: Callable[[Any], None], run: Any, deep: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    stray(monkeypatch)
    found, step = of_row("fsdp8-recomputed", run, deep)
    with pytest.raises(AssertionError, match=r"all-gather over fsdp|stray"):
        assert_as_stated(list(traffic(found, expected(step))))
