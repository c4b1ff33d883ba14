"""Law 4: what the compiled step sends over `replica` is what the rule states, in number and type.

Scalars are left out: sums of losses, counts and norms for the metrics, the weight of a push.
"""

from collections import Counter
from dataclasses import replace
from typing import Any

import jax
import pytest

from research.errors import UserError
from research.learning import ExchangeConfig
from research.parallel.collectives import KINDS
from research.parallel.device_groups import axes_of, groups_of, pairs_of
from research.parallel.hlo import parse
from research.parallel.mesh import MeshConfig

SCALARS = ("all-reduce", "collective-permute")  # kinds of which those are left out
TYPES = {
    "f32": "float32",
    "bf16": "bfloat16",
    "u16": "uint16",
    "s8": "int8",
    "u8": "uint8",
    "s32": "int32",
    "pred": "bool",
}


def sent_over_replica(text: str, mesh: jax.sharding.Mesh) -> Counter[tuple[str, str, int, bool]]:
    """Elements of operands by (kind, type, parties, in a conditional), of collectives in which
    devices with different places along `replica` meet."""
    found: Counter[tuple[str, str, int, bool]] = Counter()
    for visit in parse(text).visits():
        instruction = visit.instruction
        if instruction.opcode not in KINDS:
            continue
        is_permute = instruction.opcode == "collective-permute"
        attributes = instruction.attributes
        groups = pairs_of(attributes) if is_permute else groups_of(attributes, mesh.size)
        if "replica" not in axes_of(groups, dict(mesh.shape)):
            continue
        parties = mesh.shape["replica"] if is_permute else groups.shape[1]
        for array in visit.computation.operands(instruction):
            if array.size == 1 and instruction.opcode in SCALARS:
                continue
            key = (instruction.opcode, TYPES[array.dtype], parties, bool(visit.branches))
            found[key] += visit.times * array.size
    return found


def collectives_of(text: str) -> list[Any]:
    """All of the program, with the instruction of each."""
    return [v for v in parse(text).visits() if v.instruction.opcode in KINDS]


def over_replica(text: str, mesh: jax.sharding.Mesh) -> list[str]:
    """The kinds of all that cross `replica`, scalars too."""
    kinds = []
    for visit in collectives_of(text):
        attributes = visit.instruction.attributes
        is_permute = visit.instruction.opcode == "collective-permute"
        groups = pairs_of(attributes) if is_permute else groups_of(attributes, mesh.size)
        if "replica" in axes_of(groups, dict(mesh.shape)):
            kinds.append(visit.instruction.opcode)
    return kinds


def step_of(here: Any) -> str:
    """The compiled program."""
    learner = here.learner
    batch = {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here.sharding)
        for name, leaf in here.batches(1)[0].items()
    }
    with jax.set_mesh(here.mesh):
        lowered = learner.step.lower(learner.abstract_state, batch | learner.events(0))
        return str(lowered.compile().as_text())


def assert_sends_what_is_stated(here: Any) -> None:
    learner = here.learner
    stated: Counter[tuple[str, str, int, bool]] = Counter()
    for when, messages in learner.sendings():
        sometimes = not all(when(step) for step in range(100))
        for message in messages:
            if message.elements == 1 and message.kind in SCALARS:
                continue
            key = (message.kind, message.dtype, message.parties, sometimes)
            stated[key] += message.elements
    assert sent_over_replica(step_of(here), here.mesh) == stated
    assert stated


def test_the_compiled_step_sends_what_is_stated(replicas: Any) -> None:
    assert_sends_what_is_stated(replicas.run())


@pytest.mark.parametrize("compression", ["none", "int8"])
def test_fragments_of_layers_never_leave_their_stages(
    compression: Any, small: Any, run: Any
) -> None:
    """Four layers on two stages: a fragment has one layer of each."""
    text = small["text"]
    case = replace(text, model=replace(text.model, layers=4))
    exchange = ExchangeConfig("streaming_diloco", period=4, compression=compression)
    mesh = MeshConfig(replica=2, stage=2, data=2)
    assert_sends_what_is_stated(run(case, mesh, microbatches=2, exchange=exchange))


def test_fragments_that_stages_do_not_hold_are_named(small: Any, run: Any) -> None:
    exchange = ExchangeConfig("streaming_diloco", period=4)
    with pytest.raises(
        UserError, match="fragments 2 does not divide the layers of a stage, 1: .* --model.layers 4"
    ):
        run(
            small["text"],
            MeshConfig(replica=2, stage=2, data=2),
            microbatches=2,
            exchange=exchange,
        )


def test_a_simulated_server_moves_a_gradient_and_a_fetched_copy(
    server: Any, small: Any, run: Any
) -> None:
    """Of P parameters, however many workers there are; backup workers have fetched the same. Who
    takes steps of its own also has momentum, and where moves are collected a place to begin."""
    case, mesh = small["table"], MeshConfig(replica=4, data=1)
    here = run(case, mesh, 4, asynchronous=replace(server, workers=8))
    state = here.learner.abstract_state
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.parameters))
    times = {"backup_workers": 1, "easgd": 3, "buffered": 4, "diloco": 4}.get(server.rule, 2)
    wanted = {("all-reduce", "float32", 4, False): times * parameters}
    assert sent_over_replica(step_of(here), here.mesh) == wanted


def test_members_send_each_other_nothing_but_an_answer(members: Any) -> None:
    """A step has no message over `replica`, not a scalar, but for members that share weights or
    are of one run; a prediction has one, an all-gather."""
    here = members.run()
    if members.rule == "deep":
        step = step_of(here)
        assert not over_replica(step, here.mesh)
        alone = here.mesh.size == here.mesh.shape["replica"]
        assert alone == (not collectives_of(step))  # members of one device send nothing at all
    elif members.rule == "batch":
        assert_sends_what_is_stated(here)
    else:  # the parameters of what learns, and their gradients
        flat = members.run(MeshConfig(replica=4, data=1))
        parameters = jax.tree.leaves(flat.learner.one.abstract_state.parameters)
        wanted = {("all-reduce", "float32", 4, False): 2 * sum(leaf.size for leaf in parameters)}
        assert sent_over_replica(step_of(flat), flat.mesh) == wanted
    rows = {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here.evaluated)
        for name, leaf in here.case.batches(1)[0].items()
    }
    with jax.set_mesh(here.mesh):
        for function in (here.learner.evaluate, here.learner.predict):
            compiled = function.lower(here.learner.abstract_state, rows).compile()
            assert over_replica(str(compiled.as_text()), here.mesh) == ["all-gather"]


def test_the_bytes_that_are_logged_are_those_of_the_model(table: Any, run: Any) -> None:
    """By hand: 4 bytes a parameter, of which a ring of n sends 2 · (n-1)/n."""
    exchange = ExchangeConfig("post_local_sgd", replicas=4, period=3, first_local_step=2)
    here = run(table["mlp"], MeshConfig(replica=2, data=1, fsdp=2), 4, exchange=exchange)
    with jax.set_mesh(here.mesh):
        state = here.learner.init()
        one = sum(leaf.size for leaf in jax.tree.leaves(here.learner.parameters(state)))
        whole = 4 * one * 2 * 3 / 4
        seen = [here.learner.observe(step, state) for step in range(1, 10)]
    # Gradients in steps 1 and 2, parameters after 5 and 8: of 4 replicas, wherever they lie.
    assert [values["bytes_sent"] for values in seen] == pytest.approx(
        [whole, whole, 0, 0, whole, 0, 0, whole, 0], rel=1e-4
    )
    assert seen[-1]["bytes_sent_total"] == sum(values["bytes_sent"] for values in seen)
