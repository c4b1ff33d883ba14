"""Law 4 for private steps and rounds: clipping, draws and noise add nothing to what is sent."""

from collections import Counter
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

from research.exchange.privacy import Event
from research.learning import Learner, Private
from research.learning.private.private import Clipping, Method
from research.parallel.collectives import Collective, collectives
from research.parallel.mesh import MeshConfig
from research.planning.inspection import STATISTICS
from research.planning.step import bytes_on_a_device
from tests.learning.federated.test_private_rounds import private as private_rounds
from tests.learning.federated.test_private_rounds import readers


class Place(NamedTuple):
    """A model, a way to clip, and where and how it is computed."""

    model: str
    method: Method
    mesh: MeshConfig
    microbatches: int = 1
    bands: int = 1


PLACES = {
    "data8-ghost": Place("mlp", "ghost", MeshConfig(data=8), 2),
    "data8-in-turn": Place("mlp", "per_example", MeshConfig(data=8), 2, bands=3),
    "fsdp8-ghost": Place("cnn", "ghost", MeshConfig(data=1, fsdp=8)),
}


def sent(learner: Learner, batch: dict[str, Any]) -> list[Collective]:
    """By the compiled step."""
    with jax.set_mesh(learner.mesh):
        lowered = learner.step.lower(learner.abstract_state, batch | learner.events(0))
        return collectives(lowered.compile().as_text(), dict(learner.mesh.shape))


def shapes(rows: dict[str, Any], sharding: jax.sharding.Sharding) -> dict[str, Any]:
    return {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
        for name, leaf in rows.items()
    }


@pytest.mark.parametrize("name", PLACES)
def test_a_private_step_sends_what_the_plain_one_sends(name: str, table: Any, run: Any) -> None:
    """Or less: bytes by kind and axes. Gradients go over `data` once, after all microbatches."""
    where = PLACES[name]
    case = table[where.model]
    here = run(case, where.mesh, microbatches=where.microbatches)
    rows, one = case.batches(1)[0], here.learner
    event = Event(1.0, 0.25, where.bands if where.bands > 1 else 0)
    clipping = Clipping(1.0)
    learner = Private(
        one, event, 4.0, where.microbatches, clipping, where.method, bands=where.bands
    )
    weighted = rows | {"weights": np.ones(case.batch, np.float32)}
    found = sent(learner, shapes(weighted, here.sharding))
    if where.mesh.data > 1:
        [gradients] = [each for each in found if each.payload > 64]
        assert (gradients.kind, gradients.axes, gradients.calls) == ("all-reduce", ("data",), 1)
        assert gradients.is_certain and not gradients.branches
        whole = bytes_on_a_device(one.abstract_state.parameters)
        assert whole <= gradients.payload <= whole + 64
        return
    ours, plain = Counter[Any](), Counter[Any]()
    for total, each in ((ours, found), (plain, sent(one, shapes(rows, here.sharding)))):
        for message in each:
            total[message.kind, message.axes] += message.total
    assert sum(ours.values()) > 1e5
    for key, wire in ours.items():
        assert wire <= 1.05 * plain[key] + STATISTICS, key


def test_a_private_round_sends_what_clients_do_and_no_noise() -> None:
    """Over `replica` once as many numbers as there are parameters, and sums for the metrics."""
    here, reader = private_rounds(devices=2, noise=1.0), readers(devices=2)
    sharding = jax.sharding.NamedSharding(here.mesh, jax.sharding.PartitionSpec("replica"))
    found = sent(here, shapes(reader.rows(0, range(reader.cohort)), sharding))
    assert {(each.kind, each.axes) for each in found} == {("all-reduce", ("replica",))}
    parameters = bytes_on_a_device(here.abstract_state.parameters)
    assert parameters <= sum(each.payload * each.calls for each in found) <= parameters + 64
