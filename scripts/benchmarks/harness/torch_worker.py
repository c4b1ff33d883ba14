"""PyTorch's side: a training step of `torch_gpt.GPT`, in the manner of nanoGPT's train.py.

    python -m harness.torch_worker '{"compile": true, "keep_memory": false, "fused": false, ...}'

Its functions: `load` takes weights, tokens and batches that our side wrote, `parity` trains on
those batches from those weights, `run` measures steps on batches of its own.
"""

import contextlib
import json
import sys
import time
from typing import Any

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from harness.torch_gpt import GPT, Sizes, adamw
from harness.workers import serve
from research.parallel.host_memory import keep_freed_memory


class TorchTraining:
    """A model, its optimizer and its data on one device."""

    def __init__(self, settings: dict[str, Any]):
        self.settings = settings
        self.device = torch.device(settings["device"])
        if self.device.type == "cpu":
            torch.set_num_threads(settings["threads"])
            if settings["keep_memory"]:
                keep_freed_memory()
        else:
            torch.set_float32_matmul_precision("high")  # TF32 where it is not bfloat16 anyway
        torch.manual_seed(0)
        self.model = GPT(Sizes(**settings["sizes"])).to(self.device)
        self.call = torch.compile(self.model) if settings["compile"] else self.model
        self.step_number = 0

    def load(self, path: str) -> str:
        """Weights, tokens and batches that `reigen_worker` wrote to `path`; the device's name."""
        with np.load(path) as arrays:
            self.parameters = {
                name.removeprefix("parameters."): arrays[name]
                for name in arrays.files
                if name.startswith("parameters.")
            }
            self.tokens = arrays["tokens"]
            self.batches = [
                (self._place(x), self._place(y))
                for x, y in zip(arrays["inputs"], arrays["targets"], strict=True)
            ]
            self.rates = arrays["learning_rates"].tolist()
        self.rows, self.context = self.batches[0][0].shape
        self._begin()
        if self.device.type == "cuda":
            return torch.cuda.get_device_name()
        return "cpu"

    def _begin(self) -> None:
        self.model.load(self.parameters)
        self.optimizer = adamw(self.model, self.settings, fused=self.settings["fused"])
        self.step_number = 0

    def parity(self) -> list[float]:
        """Losses of the first steps on the given batches, each before its update."""
        losses = [
            float(self._step(*batch, rate))
            for batch, rate in zip(self.batches, self.rates, strict=True)
        ]
        self._begin()
        return losses

    def run(self, steps: int, synchronize: bool) -> tuple[list[float], list[float]]:
        """Wall and CPU seconds of each step, its batch and the reading of its loss included.

        With `synchronize` false (a GPU), the loss is read at the end only, and the block's mean is
        all that is returned.
        """
        wall, cpu = [], []
        began, began_cpu = time.perf_counter(), time.process_time()
        for _ in range(steps):
            loss = self._step(*self._batch(), self.rates[-1])
            if synchronize:
                loss.item()
                now, now_cpu = time.perf_counter(), time.process_time()
                wall.append(now - began)
                cpu.append(now_cpu - began_cpu)
                began, began_cpu = now, now_cpu
        if synchronize:
            return wall, cpu
        loss.item()
        seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - began_cpu
        return [seconds / steps], [cpu_seconds / steps]

    def _batch(self) -> tuple[torch.Tensor, torch.Tensor]:
        starts = torch.randint(len(self.tokens) - self.context, (self.rows,)).tolist()
        windows = [self.tokens[i : i + self.context + 1].astype(np.int64) for i in starts]
        inputs = torch.stack([torch.from_numpy(window[:-1]) for window in windows])
        targets = torch.stack([torch.from_numpy(window[1:]) for window in windows])
        if self.device.type == "cpu":
            return inputs, targets
        return (
            inputs.pin_memory().to(self.device, non_blocking=True),
            targets.pin_memory().to(self.device, non_blocking=True),
        )

    def _step(self, inputs: torch.Tensor, targets: torch.Tensor, rate: float) -> torch.Tensor:
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        with self._precision():
            loss = self.call(inputs, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings["clip"])
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss

    @contextlib.contextmanager
    def _precision(self) -> Any:
        if self.settings["dtype"] == "float32":
            yield
            return
        # Nothing but flash attention: an error, not a slow run, where it cannot be had.
        with (
            torch.autocast(self.device.type, torch.bfloat16),
            sdpa_kernel(SDPBackend.FLASH_ATTENTION),
        ):
            yield

    def _place(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array.astype(np.int64)).to(self.device)


if __name__ == "__main__":
    training = TorchTraining(json.loads(sys.argv[1]))
    serve({"load": training.load, "parity": training.parity, "run": training.run})
