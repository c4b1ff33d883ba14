"""A federated round in systems that are made for it, each by its own FedAvg.

Flower, whose clients live in other processes, loads its data there. All see the same examples in
the same order; what a system besides does in a round stands with its class.
"""

import itertools
import time
from functools import lru_cache
from typing import Any

import numpy as np

from harness.federated import BATCH, CLIENTS, EXAMPLES, RATE, Problem
from harness.federated_by_hand import local_step, torch_arrays, torch_model


class FedJax:
    """`fedjax.algorithms.fed_avg`, with its backend `jit`: a dispatch for every local step.

    It batches the examples of every client anew (in order: `skip_shuffle`), and gives the norm of
    every client's move.
    """

    def __init__(self, problem: Problem):
        import jax
        import jax.numpy as jnp

        jax.tree_map = jax.tree.map  # which FedJAX's last release calls, and JAX has no more
        import fedjax
        from fedjax.algorithms import fed_avg

        def scores(params: Any, batch: Any, rng: Any = None) -> jax.Array:
            x = batch["x"]
            for i in (0, 2):
                x = jax.nn.relu(x @ params[i] + params[i + 1])
            return x @ params[4] + params[5]

        def loss(batch: Any, logits: jax.Array) -> jax.Array:
            chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), batch["y"][:, None], axis=1)
            return -chosen[:, 0]

        fedjax.set_for_each_client_backend("jit")
        start = [jnp.asarray(array) for array in problem.start]
        model = fedjax.Model(lambda rng: start, scores, scores, loss, {})
        optimizer = fedjax.optimizers.sgd
        self._algorithm = fed_avg.federated_averaging(
            fedjax.model_grad(model),
            optimizer(RATE),
            optimizer(1.0),
            fedjax.ShuffleRepeatBatchHParams(batch_size=BATCH, skip_shuffle=True),
        )
        keys = jax.random.split(jax.random.PRNGKey(0), CLIENTS)
        self._clients = [
            (number, fedjax.ClientDataset({"x": x.reshape(EXAMPLES, -1), "y": y.reshape(-1)}), key)
            for number, (x, y, key) in enumerate(
                zip(problem.inputs, problem.targets, keys, strict=True)
            )
        ]
        self._ready = jax.block_until_ready
        self._state = self._algorithm.init(start)

    def round(self) -> None:
        """See `Side`."""
        self._state, _ = self._algorithm.apply(self._state, self._clients)
        self._ready(self._state.params)

    def parameters(self) -> list[np.ndarray]:
        """See `Side`."""
        return [np.asarray(array) for array in self._state.params]


class DrJax:
    """`drjax.program`: broadcast, a map over clients, a mean; one program, on one device a vmap.

    Local steps are a scan of ours, which DrJAX leaves to its user; batches stay on the device.
    """

    def __init__(self, problem: Problem):
        import drjax
        import jax
        import jax.numpy as jnp

        local = local_step()

        @drjax.program(placements={"clients": CLIENTS})
        def fedavg(w: list[jax.Array], data: tuple[jax.Array, jax.Array]) -> list[jax.Array]:
            ends = drjax.map_fn(
                lambda start, data: jax.lax.scan(local, start, data)[0],
                (drjax.broadcast(w), data),
            )
            return drjax.reduce_mean(ends)

        self._ready = jax.block_until_ready
        self._round = jax.jit(fedavg)
        self._data = jnp.asarray(problem.inputs), jnp.asarray(problem.targets)
        self._w = [jnp.asarray(array) for array in problem.start]

    def round(self) -> None:
        """See `Side`."""
        self._w = self._ready(self._round(self._w, self._data))

    def parameters(self) -> list[np.ndarray]:
        """See `Side`."""
        return [np.asarray(array) for array in self._w]


class Pfl:
    """pfl's `FederatedAveraging` with its `SimulatedBackend`, on PyTorch.

    It draws the cohort (here all clients, in order); metrics are evaluated in the first round only.
    """

    def __init__(self, problem: Problem):
        import torch
        from pfl.aggregate.simulate import SimulatedBackend
        from pfl.algorithm.base import NNAlgorithmParams
        from pfl.algorithm.federated_averaging import FederatedAveraging
        from pfl.data.dataset import Dataset
        from pfl.data.federated_dataset import FederatedDataset
        from pfl.hyperparam import NNTrainHyperParams
        from pfl.metrics import Weighted
        from pfl.model.pytorch import PyTorchModel

        class Network(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.layers = torch_model(problem.start)

            def loss(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
                return torch.nn.functional.cross_entropy(self.layers(x), y)

            def metrics(self, x: torch.Tensor, y: torch.Tensor) -> dict[str, Any]:
                return {"loss": Weighted(self.loss(x, y).item() * len(x), len(x))}

        torch.set_num_threads(1)
        users = [
            Dataset(
                (
                    torch.from_numpy(x.reshape(EXAMPLES, -1)),
                    torch.from_numpy(y.reshape(-1)).long(),
                )
            )
            for x, y in zip(problem.inputs, problem.targets, strict=True)
        ]
        following = iter(lambda: self._next(), None)
        self._turn = -1
        data = FederatedDataset(lambda user: users[user], lambda: next(following))
        self._backend = SimulatedBackend(data, data)
        self._algorithm = FederatedAveraging()
        self._rounds, self._parameters = 0, NNAlgorithmParams
        self._training = NNTrainHyperParams(
            local_batch_size=BATCH, local_num_epochs=1, local_learning_rate=RATE
        )
        network = Network()
        self._network = network
        central = torch.optim.SGD(network.parameters(), lr=1.0)
        self._model = PyTorchModel(network, torch.optim.SGD, central)

    def _next(self) -> int:
        self._turn = (self._turn + 1) % CLIENTS
        return self._turn

    def round(self) -> None:
        """See `Side`."""
        self._rounds += 1
        until = self._parameters(
            central_num_iterations=self._rounds,
            evaluation_frequency=1_000_000,
            train_cohort_size=CLIENTS,
            val_cohort_size=0,
        )
        self._algorithm.run(
            until, self._backend, self._model, self._training, send_metrics_to_platform=False
        )

    def parameters(self) -> list[np.ndarray]:
        """See `Side`."""
        return torch_arrays(self._network.layers.parameters())


class Flower:
    """Flower's simulation: its FedAvg, 100 nodes, and one worker process of Ray.

    Every block starts the simulation anew, and its first round is not counted: the workers start.
    CPU seconds are not had, since the clients are other processes.
    """

    def __init__(self, problem: Problem):
        import sys

        import ray  # noqa: F401 - the simulation needs it

        self._w, self._path = problem.start, sys.argv[2]

    def timed(self, once: Any, rounds: int) -> tuple[list[float], list[float]]:
        """Wall seconds of each round."""
        ends = self._simulate(rounds + 1)
        return [after - before for before, after in itertools.pairwise(ends)], []

    def round(self) -> None:
        """See `Side`."""
        self._simulate(1)

    def parameters(self) -> list[np.ndarray]:
        """See `Side`."""
        return self._w

    def _simulate(self, rounds: int) -> list[float]:
        """When each round ended."""
        from flwr.app import ArrayRecord, Context
        from flwr.clientapp import ClientApp
        from flwr.serverapp import Grid, ServerApp
        from flwr.serverapp.strategy import FedAvg
        from flwr.simulation import run_simulation

        client, server, path, ends = ClientApp(), ServerApp(), self._path, []

        class Timed(FedAvg):
            def aggregate_train(self, *arguments: Any) -> Any:
                answer = super().aggregate_train(*arguments)
                ends.append(time.perf_counter())
                return answer

        @client.train()
        def train(message: Any, context: Context) -> Any:
            return flower_client(message, path, int(context.node_config["partition-id"]))

        @server.main()
        def serve(grid: Grid, context: Context) -> None:
            # Without the minimum, a round begins with the nodes that are there by then.
            strategy = Timed(
                fraction_evaluate=0.0, min_train_nodes=CLIENTS, min_available_nodes=CLIENTS
            )
            result = strategy.start(grid, ArrayRecord(self._w), num_rounds=rounds)
            self._w = result.arrays.to_numpy_ndarrays()

        one = {"num_cpus": 1}
        run_simulation(
            server, client, CLIENTS, backend_config={"init_args": one, "client_resources": one}
        )
        return ends


_problem = lru_cache(Problem.load)


def flower_client(message: Any, path: str, number: int) -> Any:
    """The reply of one client to the server's parameters."""
    import torch
    from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict

    torch.set_num_threads(1)
    problem = _problem(path)
    model = torch_model(message.content["arrays"].to_numpy_ndarrays())
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    inputs = torch.from_numpy(problem.inputs[number])
    targets = torch.from_numpy(problem.targets[number]).long()
    for x, y in zip(inputs, targets, strict=True):
        optimizer.zero_grad(set_to_none=True)
        torch.nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    arrays = ArrayRecord([np.ascontiguousarray(a) for a in torch_arrays(model.parameters())])
    metrics = MetricRecord({"num-examples": EXAMPLES})
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)
