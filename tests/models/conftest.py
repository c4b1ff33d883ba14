"""What the tests of several models share."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from research.models.specification import Specification
from research.parallel.layout import batch_sharding, parameter_shardings
from research.parallel.mesh import MeshConfig

Step = Callable[..., tuple[float, dict[str, Any], dict[str, Any], jax.Array]]


@pytest.fixture(autouse=True)
def exact_products() -> Iterator[None]:
    """Float32 products where an accelerator would shorten them, so that tolerances hold there."""
    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture
def step() -> Step:
    """Loss, gradients, buffers after the step, and logits, as a training step computes them: a
    module merged from pure dicts inside jit, differentiated, and split again."""

    def run(
        config: Any,
        specification: Specification,
        inputs: np.ndarray,
        *,
        mesh: MeshConfig | None = None,
        train: bool = True,
        keys: jax.Array | None = None,
        seed: int = 0,
    ) -> tuple[float, dict[str, Any], dict[str, Any], jax.Array]:
        model = config.build(specification, jax.random.key(seed))
        graph, parameters, buffers = nnx.split(model, nnx.Param, ...)
        targets = np.arange(len(inputs)) % specification.classes

        @jax.jit
        def compiled(
            parameters: dict[str, Any], buffers: dict[str, Any], inputs: jax.Array
        ) -> tuple[tuple[jax.Array, tuple[Any, jax.Array]], dict[str, Any]]:
            def loss(parameters: dict[str, Any]) -> tuple[jax.Array, tuple[Any, jax.Array]]:
                model = nnx.merge(graph, parameters, buffers)
                logits = model(inputs, train=train, keys=keys)
                after = nnx.to_pure_dict(nnx.split(model, nnx.Param, ...)[2])
                likelihood = jax.nn.log_softmax(logits)[jnp.arange(len(targets)), targets]
                return -likelihood.mean(), (after, logits)

            return jax.value_and_grad(loss, has_aux=True)(parameters)

        arguments = (nnx.to_pure_dict(parameters), nnx.to_pure_dict(buffers), inputs)
        if mesh is None:
            (loss, (after, logits)), gradients = compiled(*arguments)
        else:
            devices = mesh.build()
            shardings = (
                parameter_shardings(parameters, devices),
                parameter_shardings(buffers, devices),
                batch_sharding(devices, len(inputs)),
            )
            with jax.set_mesh(devices):
                (loss, (after, logits)), gradients = compiled(*jax.device_put(arguments, shardings))
        return float(loss), jax.device_get(gradients), jax.device_get(after), logits

    return run


@pytest.fixture(
    params=[MeshConfig(data=8), MeshConfig(data=2, fsdp=2, tensor=2)],
    ids=["data8", "data2-fsdp2-tensor2"],
)
def mesh(request: pytest.FixtureRequest) -> MeshConfig:
    """Meshes of 8 devices; skipped where there are fewer or more."""
    if jax.device_count() != 8:
        pytest.skip(f"needs 8 devices, {jax.device_count()} are here")
    chosen: MeshConfig = request.param
    return chosen


@pytest.fixture
def count() -> Callable[[Any, Specification], int]:
    """Number of learned parameters of a config's model."""

    def parameters(config: Any, specification: Specification) -> int:
        model = nnx.eval_shape(lambda: config.build(specification, jax.random.key(0)))
        return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))

    return parameters
