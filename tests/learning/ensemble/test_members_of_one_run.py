"""Snapshots and members of rank one, against what their papers' equations give by hand."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

from research.errors import UserError
from research.learning import EnsembleConfig, OptimizerConfig, Synchronous
from research.learning.ensemble.batch_ensemble import member_of, split
from research.learning.ensemble.snapshots import restarts
from research.models import CNNConfig, LinearConfig, Specification, TransformerConfig
from research.parallel.mesh import MeshConfig

TABLE = Specification(shape=(6,), classes=3)
SGD = OptimizerConfig(name="sgd", learning_rate=0.3, schedule="constant", clip=None)
M, BATCH, STEPS = 3, 8, 6
CLOSE: dict[str, float] = {"rtol": 2e-5, "atol": 2e-6}


@pytest.fixture(autouse=True)
def quick_compiling() -> Iterator[None]:
    """As for the laws."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def batches(*members: int) -> list[dict[str, np.ndarray]]:
    generator = np.random.default_rng(0)
    return [
        {
            "inputs": generator.normal(size=(*members, BATCH, 6)).astype(np.float32),
            "targets": generator.integers(3, size=(*members, BATCH), dtype=np.int32),
        }
        for _ in range(STEPS)
    ]


def built(rule: Any) -> Any:
    config = EnsembleConfig(rule, members=M)
    schedule = config.schedule(SGD, STEPS)
    mesh = MeshConfig(data=1).build(jax.devices()[:1])
    build = SGD.build(STEPS, schedule)
    one = Synchronous(LinearConfig(), TABLE, build, schedule, mesh, outside=("replica",))
    return config.build(one, SGD, STEPS, LinearConfig())


def softmax(logits: np.ndarray) -> np.ndarray:
    p = np.exp(logits - logits.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


def layer(tree: Any) -> tuple[np.ndarray, np.ndarray]:
    """Weight and bias of the linear model, in float64."""
    bias, kernel = (np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(tree))
    return kernel, bias


def test_snapshots_are_what_a_run_with_restarts_passes() -> None:
    made = built("snapshot")
    rates = [0.15 * (np.cos(np.pi * (t % 2) / 2) + 1) for t in range(STEPS)]
    rows = batches()[0]
    with jax.set_mesh(made.mesh):
        state = made.init()
        weight, bias = layer(jax.tree.map(lambda leaf: leaf[0], state.parameters))
        passed = []
        for step, batch in enumerate(batches()):
            state, metrics = made.step(state, batch)
            assert float(metrics["learning_rate"]) == pytest.approx(rates[step], rel=1e-5)
            slope = softmax(batch["inputs"] @ weight + bias) - np.eye(3)[batch["targets"]]
            weight = weight - rates[step] * batch["inputs"].T @ slope / BATCH
            bias = bias - rates[step] * slope.mean(0)
            passed.append((weight, bias))
            begun = np.isfinite(made.predict(state, rows).log_probabilities).all((1, 2))
            assert begun.tolist() == [number <= step // 2 for number in range(M)]
        answers = jax.jit(lambda state, x: made.model(state)(x))(state, rows["inputs"])
        last = layer(made.parameters(state))
    for number in range(M):
        kept = layer(jax.tree.map(lambda leaf, n=number: leaf[n], state.parameters))
        for mine, its in zip(kept, passed[2 * number + 1], strict=True):
            np.testing.assert_allclose(mine, its, **CLOSE)
    np.testing.assert_allclose(last[0], passed[-1][0], **CLOSE)
    each = [softmax(rows["inputs"] @ w + b) for w, b in passed[1::2]]
    np.testing.assert_allclose(np.exp(answers), np.mean(each, axis=0), rtol=1e-4)


def test_a_rate_restarts_as_often_as_there_are_members() -> None:
    rate = restarts(1.0, 10, 4)  # cycles of 3
    wanted = [0.5 * (np.cos(np.pi * (t % 3) / 3) + 1) for t in range(10)]
    assert [float(rate(t)) for t in range(10)] == pytest.approx(wanted)


def test_members_of_rank_one_learn_by_the_paper_s_equations() -> None:
    """The pass is ((x ∘ r) W) ∘ s + b, the gradients are written out, the update is SGD's."""
    made = built("batch")
    with jax.set_mesh(made.mesh):
        state = made.init()
        first = jax.device_get(state.parameters)
        for batch in batches(M):
            state, metrics = made.step(state, batch)
        after = jax.device_get(state.parameters)
    (weight,), (r,), (s,), (b,) = (
        [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(first[which])]
        for which in ("shared", "rows", "columns", "own")
    )
    assert set(np.unique(r)) == set(np.unique(s)) == {-1.0, 1.0}
    assert (r.shape, s.shape, b.shape) == ((M, 6), (M, 3), (M, 3))
    assert (r[0] != r[1]).any() and (r[1] != r[2]).any()
    for batch in batches(M):
        x, labels = batch["inputs"].astype(np.float64), batch["targets"]
        inner = (x * r[:, None]) @ weight  # [members, batch, classes]
        p = softmax(inner * s[:, None] + b[:, None])
        loss = -np.log(np.take_along_axis(p, labels[..., None], -1)).mean()
        slope = (p - np.eye(3)[labels]) / (M * BATCH)
        through = slope * s[:, None]
        moves = (
            np.einsum("mbi,mbo->io", x * r[:, None], through),
            np.einsum("mbi,mbo,io->mi", x, through, weight),
            np.einsum("mbo,mbo->mo", slope, inner),
            slope.sum(1),
        )
        weight, r, s, b = (
            old - 0.3 * move for old, move in zip((weight, r, s, b), moves, strict=True)
        )
    assert float(metrics["loss"]) == pytest.approx(loss, rel=1e-5)
    for which, wanted in zip(("shared", "rows", "columns", "own"), (weight, r, s, b), strict=True):
        (mine,) = jax.tree.leaves(after[which])
        np.testing.assert_allclose(mine, wanted, **CLOSE)


def test_channels_of_a_convolution_are_its_rows_and_columns() -> None:
    model = CNNConfig(kind="lenet").build(Specification((8, 8, 1), 10), jax.random.key(0))
    parameters = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    made = split(parameters, jax.random.key(1))
    back = member_of(made)
    assert jax.tree.structure(back) == jax.tree.structure(parameters)
    kernel, row = parameters["second"]["kernel"], made["rows"]["second/kernel"]["scale"]
    column = made["columns"]["second/kernel"]["scale"]
    assert row.shape == (kernel.shape[2],) and column.shape == (kernel.shape[3],)
    wanted = np.einsum("hwio,i,o->hwio", kernel, row, column)
    np.testing.assert_allclose(back["second"]["kernel"], wanted, rtol=1e-6)
    few = sum(leaf.size for leaf in jax.tree.leaves((made["rows"], made["columns"], made["own"])))
    assert few < 0.05 * sum(leaf.size for leaf in jax.tree.leaves(parameters))


def test_what_members_of_one_run_cannot_have_is_named() -> None:
    with pytest.raises(UserError, match="share their width: leave out --ensemble.widths"):
        EnsembleConfig("batch", members=2, widths=(1, 2)).check(MeshConfig(), SGD)
    config = EnsembleConfig("batch", members=2)
    with pytest.raises(UserError, match="not of what else a TransformerConfig has"):
        config.build(built("batch").one, SGD, STEPS, TransformerConfig())
    assert not replace(config, rule="snapshot", plan="auto").plans()
