"""Experts over the devices of `expert`: what is sent, what is held, and what does not fit."""

import math
import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

from research.learning import Synchronous
from research.models import Specification, TransformerConfig
from research.models.dispatch import capacity_of
from research.parallel.layout import batch_sharding
from research.parallel.mesh import MeshConfig

# Every size another, so that shapes tell what an array is.
BATCH, LENGTH, WIDTH, HIDDEN, EXPERTS, K = 16, 24, 32, 40, 8, 2
CONFIG = TransformerConfig(
    layers=3,
    width=WIDTH,
    heads=4,
    hidden=HIDDEN,
    positions="rotary",
    experts=EXPERTS,
    experts_per_token=K,
)


def learner(config: TransformerConfig, mesh: MeshConfig) -> Synchronous:
    rate = optax.constant_schedule(0.1)
    specification = Specification((LENGTH,), 50)
    return Synchronous(
        config, specification, optax.adam(rate), rate, mesh.build(jax.devices("cpu"))
    )


@cache
def step(config: TransformerConfig, mesh: MeshConfig) -> str:
    """The program of a training step: machine code with little care, the partitioner as ever."""
    here = learner(config, mesh)
    rows = batch_sharding(here.mesh, BATCH)
    tokens = jax.ShapeDtypeStruct((BATCH, LENGTH), jnp.int32, sharding=rows)
    with jax.set_mesh(here.mesh):
        lowered = here.step.lower(here.abstract_state, {"inputs": tokens, "targets": tokens})
    return lowered.compile({"xla_backend_optimization_level": 0}).as_text() or ""


def collectives(program: str, name: str) -> list[list[tuple[str, tuple[int, ...]]]]:
    """Type and shape of every array of every collective of that name. One of a loop's body, as the
    layers are, stands here once."""
    return [
        [
            (kind, tuple(int(size) for size in sizes.split(",") if size))
            for kind, sizes in re.findall(r"\b([a-z]\w*)\[([\d,]*)\]", shapes)
        ]
        for shapes in re.findall(rf"= (.*?) {name}(?:-start)?\(", program)
    ]


def elements(call: list[tuple[str, tuple[int, ...]]]) -> int:
    return sum(math.prod(shape) for _, shape in call)


MOVING = ("all-gather", "reduce-scatter", "collective-permute", "ragged-all-to-all")


def test_with_a_capacity_seats_are_exchanged_twice_forward_and_twice_backward() -> None:
    program = step(replace(CONFIG, capacity_factor=1.25), MeshConfig(data=2, expert=4))
    capacity = capacity_of(1.25, LENGTH, K, EXPERTS)
    exchanges = collectives(program, "all-to-all")
    assert [elements(call) for call in exchanges] == 4 * [
        (BATCH // 8) * EXPERTS * capacity * WIDTH  # of which a quarter stays
    ]
    assert {kind for call in exchanges for kind, _ in call} == {"f32"}
    assert not any(collectives(program, name) for name in MOVING)


def test_without_one_rows_are_exchanged_as_often_and_their_numbers_once() -> None:
    """On a CPU as many rows as could be chosen at worst."""
    program = step(CONFIG, MeshConfig(data=2, expert=4))
    numbers, *exchanges = sorted(collectives(program, "all-to-all"), key=elements)
    assert {kind for kind, _ in numbers} == {"s32"} and elements(numbers) == EXPERTS
    tokens = BATCH // 8 * LENGTH
    assert [elements(call) for call in exchanges] == 4 * [
        4 * tokens * min(K, EXPERTS // 4) * WIDTH  # of which a quarter stays
    ]
    assert not any(collectives(program, name) for name in MOVING)


@pytest.mark.parametrize("remat", ["full", "dots"])
def test_layers_that_run_again_exchange_again_and_gather_nothing(remat: Any) -> None:
    for factor, calls in [(1.25, 6), (None, 8)]:
        config = replace(CONFIG, capacity_factor=factor, remat=remat)
        program = step(config, MeshConfig(data=2, expert=4))
        assert 4 < len(collectives(program, "all-to-all")) <= calls
        assert not any(collectives(program, name) for name in MOVING)


@pytest.mark.parametrize("factor", [None, 1.25])
def test_gradients_of_experts_are_summed_where_the_experts_are(factor: float | None) -> None:
    """Over the two devices that share them, over `data`; a quarter of the experts each."""
    program = step(replace(CONFIG, capacity_factor=factor), MeshConfig(data=2, expert=4))
    reduced = [shape for call in collectives(program, "all-reduce") for _, shape in call]
    assert {shape for shape in reduced if HIDDEN in shape} == {
        (EXPERTS // 4, WIDTH, HIDDEN),
        (EXPERTS // 4, HIDDEN, WIDTH),
    }
    assert not [shape for shape in reduced if {LENGTH, LENGTH * BATCH // 8} & set(shape)]


@pytest.mark.parametrize("factor", [None, 1.25])
def test_over_fsdp_an_experts_weights_are_gathered_and_only_on_its_devices(
    factor: float | None,
) -> None:
    program = step(
        replace(CONFIG, capacity_factor=factor), MeshConfig(data=1, expert=2, fsdp=2, tensor=2)
    )
    gathered = [shape for call in collectives(program, "all-gather") for _, shape in call]
    assert {shape for shape in gathered if EXPERTS // 2 in shape and HIDDEN // 2 in shape} == {
        (EXPERTS // 2, WIDTH, HIDDEN // 2),
        (EXPERTS // 2, HIDDEN // 2, WIDTH),
    }
    assert not [shape for shape in gathered if LENGTH in shape and WIDTH in shape]


@pytest.mark.parametrize("parts", [1, 2, 4, 8])
def test_weights_of_experts_a_device_fall_with_the_axis(parts: int) -> None:
    here = learner(CONFIG, MeshConfig(expert=parts))
    with jax.set_mesh(here.mesh):
        state = here.init()
    for parameters in (state.parameters, state.optimizer[0].mu, state.optimizer[0].nu):
        mlp = parameters["blocks"]["mlp"]
        assert mlp["up"].addressable_shards[0].data.shape == (3, EXPERTS // parts, WIDTH, HIDDEN)
        assert mlp["down"].addressable_shards[0].data.shape == (3, EXPERTS // parts, HIDDEN, WIDTH)
        assert mlp["router"].sharding.is_fully_replicated


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ["--model.experts", "6", "--mesh.expert", "4"],
            "experts 6 does not divide over expert = 4: use experts 4 or 8, or a mesh with "
            "expert = 2",
        ),
        (
            ["--model.experts", "2", "--mesh.expert", "4"],
            "experts 2 does not divide over expert = 4: use experts 4, or a mesh with expert = 2",
        ),
        (
            ["--mesh.expert", "4"],
            "nothing of this model is split over `expert` = 4: set --mesh.expert 1",
        ),
        (
            ["--model.experts", "4", "--mesh.expert", "4", "--data.batch", "12"],
            "batch 12 does not divide over data × expert = 8: use batch 8 or 16",
        ),
        (["--model.experts", "-1"], "experts -1: use 2 or more, or 0 for no mixture"),
        (["--model.experts", "1"], "experts_per_token 2 of 1 experts: use 1 to 1, or"),
        (["--model.experts", "4", "--model.capacity-factor", "0"], "capacity_factor 0.0 leaves"),
        (
            ["--model.experts", "4", "--model.capacity-factor", "1.25", "--mesh.context", "4"],
            "capacity_factor 1.25 counts the places of a whole sequence, and --mesh.context 4 "
            "splits it: use --model.capacity-factor None, which drops nothing, or --mesh.context 1",
        ),
    ],
)
def test_a_mistake_on_the_command_line_is_one_sentence(
    words: list[str], sentence: str, config: Path, tmp_path: Path, mistake: Callable[..., str]
) -> None:
    folder = tmp_path / "run"
    assert sentence in mistake("train", config, "--run.directory", folder, *words)
    assert not folder.exists()
