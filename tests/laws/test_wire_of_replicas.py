"""Law 4: what the compiled step sends over `replica` is what the rule states, in number and type.

Scalars are left out: sums of losses, counts and norms for the metrics, the weight of a push.
"""

import re
from collections import Counter
from math import prod
from typing import Any

import jax
import numpy as np
import pytest

from research.learning import ExchangeConfig
from research.parallel.mesh import MeshConfig

KINDS = ("all-reduce", "reduce-scatter", "all-to-all", "all-gather", "collective-permute")
SCALARS = ("all-reduce", "collective-permute")  # kinds of which those are left out
TYPES = {
    "f32": "float32",
    "bf16": "bfloat16",
    "u16": "uint16",
    "s8": "int8",
    "u8": "uint8",
    "s32": "int32",
}
LINE = re.compile(rf"= (\(.*?\)|\S+) ({'|'.join(KINDS)})(?:-start)?\((.*)")


def groups_of(line: str) -> np.ndarray:
    """[groups, devices]: the partitions that take part together, in any of XLA's spellings."""
    if pairs := re.search(r"source_target_pairs=\{(.*?)\}[,)]? ?", line):
        return np.array(re.findall(r"\{?(\d+),(\d+)", pairs[0]), int)
    if listed := re.search(r"replica_groups=\{(\{.*?\})\}", line):
        return np.array([g.split(",") for g in re.findall(r"\{([\d,]+)\}", listed[1])], int)
    if named := re.search(r"replica_groups=mesh\[(.*?)\] \{(.*?)\}", line):
        axes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", named[1])}
        among = re.findall(r"'(\w+)'", named[2])
        devices = np.arange(prod(axes.values())).reshape(list(axes.values()))
        last = [list(axes).index(name) for name in among]
        devices = np.moveaxis(devices, last, range(-len(last), 0))
        return devices.reshape(-1, prod(axes[name] for name in among))
    iota = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", line)
    assert iota, line
    shape, dims, order = ([int(n) for n in (part or "").split(",") if n] for part in iota.groups())
    devices = np.arange(prod(dims)).reshape(dims)
    return devices.transpose(order or range(len(dims))).reshape(shape)


def sent_over_replica(text: str, mesh: jax.sharding.Mesh) -> Counter[tuple[str, str, int, bool]]:
    """Elements of operands by (kind, type, parties, in a conditional), of collectives in which
    devices with different places along `replica` meet."""
    places = np.arange(mesh.size).reshape(mesh.devices.shape)
    replica = {int(device): place[0] for place, device in np.ndenumerate(places)}
    found: Counter[tuple[str, str, int, bool]] = Counter()
    for line in text.splitlines():
        if not (match := LINE.search(line)):
            continue
        results, kind, _ = match.groups()
        groups = groups_of(line)
        if all(replica[int(d)] == replica[int(group[0])] for group in groups for d in group):
            continue
        parties = mesh.shape["replica"] if kind == "collective-permute" else groups.shape[1]
        conditional = re.search(r"/cond/branch_\d+_fun/", line) is not None
        for dtype, shape in re.findall(r"(\w+)\[([\d,]*)\]", results):
            elements = prod(int(n) for n in shape.split(",") if n)
            if elements == 1 and kind in SCALARS:
                continue
            if kind == "all-gather":
                elements //= parties  # of the operand
            found[kind, TYPES[dtype], parties, conditional] += elements
    return found


def test_the_compiled_step_sends_what_is_stated(replicas: Any) -> None:
    here = replicas.run()
    learner = here.learner
    rows = replicas.case.batches(1)[0]
    batch = {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here.sharding)
        for name, leaf in rows.items()
    }
    with jax.set_mesh(here.mesh):
        text = learner.step.lower(learner.abstract_state, batch).compile().as_text()
    stated: Counter[tuple[str, str, int, bool]] = Counter()
    for when, messages in learner.sendings():
        sometimes = not all(when(step) for step in range(100))
        for message in messages:
            if message.elements == 1 and message.kind in SCALARS:
                continue
            key = (message.kind, message.dtype, message.parties, sometimes)
            stated[key] += message.elements
    assert sent_over_replica(text, here.mesh) == stated
    assert stated


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
