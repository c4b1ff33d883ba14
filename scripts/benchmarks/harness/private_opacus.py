"""PyTorch's and Opacus's side of `private_step.py`: the CNN of McMahan et al. 2017, a step of SGD.

    python -m harness.private_opacus problem.npz '{"threads": 2, "bound": 1.0, "rate": 0.1}'

Its functions: `parity` gives the largest difference from our parameters after a step without noise,
`run` measures steps by random noise, `version` names what runs.
"""

import json
import sys
import time
import warnings
from typing import Any

import numpy as np
import opacus
import torch
from torch import nn

from harness.workers import serve

warnings.filterwarnings("ignore")  # of hooks that are not full; of a generator that is not secure


class Net(nn.Module):
    """[batch, 1, 28, 28] to logits."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 32, 5, padding=2)
        self.second = nn.Conv2d(32, 64, 5, padding=2)
        self.hidden = nn.Linear(7 * 7 * 64, 512)
        self.output = nn.Linear(512, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.relu(nn.functional.max_pool2d(self.first(x), 2))
        x = nn.functional.relu(nn.functional.max_pool2d(self.second(x), 2))
        return self.output(nn.functional.relu(self.hidden(x.flatten(1))))

    def load(self, arrays: dict[str, np.ndarray]) -> None:
        """Our parameters: kernels [height, width, in, out], features [height, width, channels]."""
        with torch.no_grad():
            for name, layer in self.named_children():
                kernel, bias = arrays[f"{name}.kernel"], arrays[f"{name}.bias"]
                if kernel.ndim == 4:
                    kernel = kernel.transpose(3, 2, 0, 1)
                elif name == "hidden":
                    kernel = kernel.reshape(7, 7, 64, -1).transpose(3, 2, 0, 1)
                    kernel = kernel.reshape(kernel.shape[0], -1)
                else:
                    kernel = kernel.T
                layer.weight.copy_(torch.from_numpy(np.ascontiguousarray(kernel)))
                layer.bias.copy_(torch.from_numpy(bias))


class Side:
    """One way to take a step: `plain`, `hooks` (a gradient an example) or `ghost`."""

    def __init__(
        self, kind: str, arrays: dict[str, np.ndarray], settings: dict[str, Any], noise: float
    ):
        self.inputs = torch.from_numpy(arrays["inputs"].transpose(0, 3, 1, 2).copy())
        self.targets = torch.from_numpy(arrays["targets"].astype(np.int64))
        net = Net()
        net.load(arrays)
        self.optimizer: Any = torch.optim.SGD(net.parameters(), lr=settings["rate"])
        self.model: Any = net
        self.criterion: Any = nn.CrossEntropyLoss()
        if kind != "plain":
            data = torch.utils.data.TensorDataset(self.inputs, self.targets)
            loader = torch.utils.data.DataLoader(data, batch_size=len(self.inputs))
            made = opacus.PrivacyEngine().make_private(
                module=net,
                optimizer=self.optimizer,
                criterion=self.criterion,
                data_loader=loader,
                noise_multiplier=noise,
                max_grad_norm=settings["bound"],
                poisson_sampling=False,
                grad_sample_mode=kind,
            )
            self.model, self.optimizer = made[:2]
            if kind == "ghost":
                self.criterion = made[2]

    def step(self) -> None:
        self.optimizer.zero_grad()
        self.criterion(self.model(self.inputs), self.targets).backward()
        self.optimizer.step()

    def parameters(self) -> Net:
        return getattr(self.model, "_module", self.model)


class Opacus:
    """All sides, on the problem in `path`."""

    def __init__(self, path: str, settings: dict[str, Any]):
        torch.set_num_threads(settings["threads"])
        torch.manual_seed(0)
        with np.load(path) as arrays:
            self.arrays = {name: arrays[name] for name in arrays.files}
        self.settings = settings
        self.sides: dict[str, Side] = {}

    def parity(self, kind: str) -> float:
        """After one step without noise, from the same parameters, as a share of the largest move of
        one."""
        side = Side(kind, self.arrays, self.settings, noise=0.0)
        side.step()
        start, wanted, prefix = Net(), Net(), "plain." if kind == "plain" else "private."
        after = [name for name in self.arrays if name.startswith(prefix)]
        start.load(self.arrays)
        wanted.load({name.removeprefix(prefix): self.arrays[name] for name in after})

        def apart(one: nn.Module, other: nn.Module) -> float:
            pairs = zip(one.parameters(), other.parameters(), strict=True)
            return max(float((a - b).abs().max()) for a, b in pairs)

        return apart(side.parameters(), wanted) / apart(start, wanted)

    def run(self, kind: str, steps: int) -> tuple[list[float], list[float]]:
        """Wall and CPU seconds of each step."""
        if kind not in self.sides:
            self.sides[kind] = Side(kind, self.arrays, self.settings, noise=1.0)
        wall, cpu = [], []
        for _ in range(steps):
            began, began_cpu = time.perf_counter(), time.process_time()
            self.sides[kind].step()
            wall.append(time.perf_counter() - began)
            cpu.append(time.process_time() - began_cpu)
        return wall, cpu

    def version(self) -> str:
        return f"opacus {opacus.__version__}, torch {torch.__version__}"


if __name__ == "__main__":
    here = Opacus(sys.argv[1], json.loads(sys.argv[2]))
    serve({"parity": here.parity, "run": here.run, "version": here.version})
