"""A federated round as one would write it for this problem alone, in JAX, NumPy and PyTorch.

All of them take the same batches in every round: nothing is sampled, shuffled or read, nothing
logged, nobody drops out, and all clients weigh the same.
"""

from collections.abc import Callable

import numpy as np

from harness.federated import BATCH, EXAMPLES, RATE, Problem


def local_step() -> Callable[[list, tuple], tuple]:
    """One step by one batch in JAX, as the body of a scan: w ← w - rate·∇ℓ(w; batch)."""
    import jax
    import jax.numpy as jnp

    def loss(w: list[jax.Array], x: jax.Array, y: jax.Array) -> jax.Array:
        for i in (0, 2):
            x = jax.nn.relu(x @ w[i] + w[i + 1])
        scores = jax.nn.log_softmax(x @ w[4] + w[5])
        return -jnp.mean(jnp.take_along_axis(scores, y[:, None], axis=1))

    def local(w: list[jax.Array], batch: tuple[jax.Array, jax.Array]) -> tuple:
        gradient = jax.grad(loss)(w, *batch)
        return [a - RATE * g for a, g in zip(w, gradient, strict=True)], None

    return local


class Scan:
    """JAX, one program: a scan over clients, and in it a scan over their batches."""

    unroll = 1

    def __init__(self, problem: Problem):
        import jax
        import jax.numpy as jnp

        local = local_step()

        def fedavg(w: list[jax.Array], x: jax.Array, y: jax.Array) -> list[jax.Array]:
            def client(total: list[jax.Array], data: tuple[jax.Array, jax.Array]) -> tuple:
                end, _ = jax.lax.scan(local, w, data, unroll=self.unroll)
                return [t + e for t, e in zip(total, end, strict=True)], None

            total, _ = jax.lax.scan(client, [jnp.zeros_like(a) for a in w], (x, y))
            return [t / len(x) for t in total]

        self._ready = jax.block_until_ready
        self._round = jax.jit(fedavg)
        self._data = jnp.asarray(problem.inputs), jnp.asarray(problem.targets)
        self._w = [jnp.asarray(array) for array in problem.start]

    def round(self) -> None:
        """See `Side`."""
        self._w = self._ready(self._round(self._w, *self._data))

    def parameters(self) -> list[np.ndarray]:
        """See `Side`."""
        return [np.asarray(array) for array in self._w]


class UnrolledScan(Scan):
    """The same, with all batches of a client compiled as one."""

    unroll = EXAMPLES // BATCH


class Numpy:
    """NumPy: the gradient written out, loops over clients and batches."""

    def __init__(self, problem: Problem):
        self._problem = problem
        self._w = [array.copy() for array in problem.start]
        self._classes = np.eye(problem.start[-1].size, dtype=np.float32)

    def round(self) -> None:
        """See `Side`."""
        total = [np.zeros_like(array) for array in self._w]
        for inputs, targets in zip(self._problem.inputs, self._problem.targets, strict=True):
            w = [array.copy() for array in self._w]
            for x, y in zip(inputs, targets, strict=True):
                for array, gradient in zip(w, self._gradient(w, x, y), strict=True):
                    gradient *= RATE
                    array -= gradient
            for mean, array in zip(total, w, strict=True):
                mean += array
        self._w = [array / np.float32(len(self._problem.inputs)) for array in total]

    def _gradient(self, w: list[np.ndarray], x: np.ndarray, y: np.ndarray) -> list[np.ndarray]:
        h1 = np.maximum(x @ w[0] + w[1], 0)
        h2 = np.maximum(h1 @ w[2] + w[3], 0)
        scores = h2 @ w[4] + w[5]
        exponentials = np.exp(scores - scores.max(axis=1, keepdims=True))
        d3 = (exponentials / exponentials.sum(axis=1, keepdims=True) - self._classes[y]) / len(x)
        d2 = d3 @ w[4].T * (h2 > 0)
        d1 = d2 @ w[2].T * (h1 > 0)
        return [x.T @ d1, d1.sum(axis=0), h1.T @ d2, d2.sum(axis=0), h2.T @ d3, d3.sum(axis=0)]

    def parameters(self) -> list[np.ndarray]:
        """See `Side`."""
        return self._w


class Torch:
    """PyTorch: one module that every client in turn begins anew, with torch.optim.SGD."""

    def __init__(self, problem: Problem):
        import torch

        torch.set_num_threads(1)
        self._torch = torch
        self._model = torch_model(problem.start)
        self._optimizer = torch.optim.SGD(self._model.parameters(), lr=RATE)
        self._inputs = torch.from_numpy(problem.inputs)
        self._targets = torch.from_numpy(problem.targets).long()
        self._w = [p.detach().clone() for p in self._model.parameters()]

    def round(self) -> None:
        """See `Side`."""
        torch = self._torch
        parameters = list(self._model.parameters())
        total = [torch.zeros_like(array) for array in self._w]
        for inputs, targets in zip(self._inputs, self._targets, strict=True):
            with torch.no_grad():
                torch._foreach_copy_(parameters, self._w)
            for x, y in zip(inputs, targets, strict=True):
                self._optimizer.zero_grad(set_to_none=True)
                torch.nn.functional.cross_entropy(self._model(x), y).backward()
                self._optimizer.step()
            with torch.no_grad():
                torch._foreach_add_(total, parameters)
        self._w = [array / len(self._inputs) for array in total]

    def parameters(self) -> list[np.ndarray]:
        """See `Side`."""
        return torch_arrays(self._w)


def torch_model(start: list[np.ndarray]):
    """torch.nn.Sequential with those weights."""
    import torch

    layers: list[torch.nn.Module] = []
    for weight, bias in zip(start[::2], start[1::2], strict=True):
        layer = torch.nn.Linear(*weight.shape)
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(weight.T))
            layer.bias.copy_(torch.from_numpy(bias))
        layers += [layer, torch.nn.ReLU()]
    return torch.nn.Sequential(*layers[:-1])


def torch_arrays(parameters) -> list[np.ndarray]:
    """Of such a module, in the order and shapes of `Problem.start`."""
    return [p.detach().numpy().T for p in parameters]
