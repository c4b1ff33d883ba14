"""GPT-2 124M on one GPU: tokens a second and model-FLOPs utilization, ours beside PyTorch's.

    python scripts/benchmarks/gpt2_gpu.py [--batch 16] [--unroll 1 12] [--quick]

Ours is the compiled step of configs/gpt2_124m.py (bfloat16, sequences of 1,024, cuDNN's flash
attention). PyTorch's is `torch.compile` of the same model in bfloat16 autocast, with flash
attention and fused AdamW. Both train on the bytes of the Python standard library, with the full
table of 50,304 rows: that costs what byte pairs would cost, and need not be learned first. They
start from the same weights, must have the same losses within bfloat16's accuracy, and then run in
turns, on one GPU in one run. Without a GPU this says so and ends.

Utilization is the share of the device's dense bfloat16 peak that the model's arithmetic takes:

    FLOPs a token = 6 · N + 12 · layers · width · context       (Chowdhery et al. 2022, appendix B)

with N all parameters but the learned positions: the table counts once, as the head. Nothing is
taken off for causal attention. Peaks: H100 and H200 SXM 989 TFLOP/s, H100 PCIe 756, A100 312;
another device by --peak. Expect minutes, most of them compiling.

The path can be tried without a GPU, at a small size:

    python scripts/benchmarks/gpt2_gpu.py --allow-cpu --quick --layers 2 --width 64 --heads 2 \\
        --context 64 --vocabulary-size 512 --batch 2
"""

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness import REPOSITORY, contestants, results, workers

from research.experiment import Experiment

PYTORCH = "PyTorch compiled"
PEAKS = {"H100 PCIe": 756e12, "H100": 989e12, "H200": 989e12, "A100": 312e12}
"""Dense bfloat16 FLOP/s by a part of the device's name (NVIDIA's data sheets); the first wins."""


def main() -> None:
    """Measures, prints a table and writes the result."""
    options = parse()
    base = sized(Experiment.load(REPOSITORY / "configs/gpt2_124m.py"), options)
    sides = {
        f"reigen, unroll {unroll}": replace(base, model=replace(base.model, unroll=unroll))
        for unroll in options.unroll or [base.model.unroll]
    }
    before = results.provenance()
    # Ours take their memory beforehand, in equal parts of what is left beside PyTorch's.
    share = 0.9 * (0.5 if options.pytorch else 1.0) / len(sides)
    environment = {"XLA_CLIENT_MEM_FRACTION": f"{share:.2f}"}
    if options.allow_cpu:
        environment["JAX_PLATFORMS"] = "cpu"

    running: dict[str, workers.Worker] = {}
    cpus = workers.available_cpus() if options.allow_cpu else []
    try:
        for name, experiment in sides.items():
            running[name] = contestants.reigen(name, experiment, cpus, environment)
        ours = next(iter(sides))
        device = running[ours].call("device")
        if device["backend"] != "gpu" and not options.allow_cpu:
            print(
                "there is no GPU that JAX can use: nothing was measured (make setup EXTRA=cuda13 "
                "installs JAX for one)"
            )
            return
        if options.pytorch:
            contestants.needs_torch("--no-pytorch")
        with tempfile.TemporaryDirectory() as folder:
            parity = start(running, base, options, device, Path(folder, "weights.npz"))
        parameters = running[ours].call("parameters")
        timings = measure(running, options)
    finally:
        for worker in running.values():
            worker.close()

    tokens = base.data.batch * base.data.context
    flops = 6 * parameters + 12 * base.model.layers * base.model.width * base.data.context
    peak = options.peak * 1e12 if options.peak else peak_of(device["kind"])
    summaries = {name: results.summary(timing) for name, timing in timings.items()}
    rows = []
    for name, side in summaries.items():
        rate = tokens / side["seconds"]["median"]
        side["tokens_per_second"] = rate
        side["model_flops_utilization"] = flops * rate / peak if peak else None
        side["parity"] = parity.get(name)
        if name != PYTORCH and PYTORCH in timings:
            side["speed_against_pytorch"] = results.paired_ratio(
                timings[PYTORCH].wall, timings[name].wall
            )
        speed = side.get("speed_against_pytorch")
        seconds = [side["seconds"][part] for part in ("median", "quarter", "three_quarters")]
        rows.append(
            [
                name,
                *(f"{1e3 * value:.1f}" for value in seconds),
                f"{rate:,.0f}",
                f"{100 * flops * rate / peak:.1f} %" if peak else "?",
                f"{speed['median']:.3f}" if speed else "",
            ]
        )
    header = ["ms a step", "median", "25 %", "75 %", "tokens/s", "utilization", "faster by"]
    results.table(header, rows)
    dense = f"{peak / 1e12:.0f} TFLOP/s" if peak else "unknown (give --peak)"
    print(f"{device['kind']}; {flops / 1e9:.3f} GFLOPs a token; dense bfloat16 peak {dense}")
    result = {
        "benchmark": "gpt2_gpu",
        "provenance": {**before, "device": device},
        "experiment": base.to_json(),
        "tokens_per_step": tokens,
        "parameters_without_positions": parameters,
        "flops_per_token": flops,
        "flops_formula": "6 N + 12 layers width context (PaLM, appendix B)",
        "peak_flops_per_second": peak,
        "rounds": options.rounds,
        "steps_per_block": options.steps,
        "sides": summaries,
    }
    results.write("gpt2_gpu", result, options)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = results.parser(__doc__)
    parser.add_argument("--batch", type=int, default=16, help="sequences a step (16)")
    parser.add_argument(
        "--unroll", type=int, nargs="+", help="layers per scan iteration, one side each"
    )
    parser.add_argument("--rounds", type=int, default=10, help="blocks of every side (10)")
    parser.add_argument("--steps", type=int, default=20, help="steps a block (20)")
    parser.add_argument("--peak", type=float, help="dense bfloat16 peak of the device (TFLOP/s)")
    parser.add_argument(
        "--pytorch", action=argparse.BooleanOptionalAction, default=True, help="measure PyTorch too"
    )
    small = parser.add_argument_group("another size, to try the path where there is no GPU")
    small.add_argument("--allow-cpu", action="store_true", help="measure on the CPU")
    for name in ("layers", "width", "heads", "context", "vocabulary-size"):
        small.add_argument(f"--{name}", type=int, help="instead of GPT-2's")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.steps = 2, 3
    return options


def sized(experiment: Experiment, options: argparse.Namespace) -> Experiment:
    """GPT-2's config for one device, on bytes, without gradient accumulation."""
    sizes = {
        name: getattr(options, name)
        for name in ("layers", "width", "heads", "vocabulary_size")
        if getattr(options, name) is not None
    }
    return replace(
        experiment,
        model=replace(experiment.model, **sizes),
        data=replace(
            experiment.data,
            vocabulary="byte",
            batch=options.batch,
            context=options.context or experiment.data.context,
        ),
        optimizer=replace(experiment.optimizer, microbatches=1),
    )


def start(
    running: dict[str, workers.Worker],
    base: Experiment,
    options: argparse.Namespace,
    device: dict[str, Any],
    weights: Path,
) -> dict[str, dict[str, float]]:
    """Compiles all sides, from the same weights; loss differences to ours, by side."""
    steps = contestants.UPDATES + 1
    losses = {
        name: worker.call("parity", path=str(weights), steps=steps)
        for name, worker in running.items()
    }
    first = next(iter(losses))
    if options.pytorch:
        worker = contestants.pytorch(
            PYTORCH,
            base,
            base.model.vocabulary_size,
            workers.available_cpus() if options.allow_cpu else [],
            device="cuda" if device["backend"] == "gpu" else "cpu",
            compiled=True,
            fused=True,
            keep_memory=True,
        )
        running[PYTORCH] = worker
        worker.call("load", path=str(weights))
        losses[PYTORCH] = worker.call("parity")
    # bfloat16 has 8 bits of precision; a mean over thousands of tokens is better than one of them.
    parity = {}
    for name, its in losses.items():
        if name != first:
            parity[name] = contestants.same_model(losses[first], its, name, 1e-2, 3e-2)
            print(f"{name}: same losses as {first}, to {max(parity[name].values()):.1e}")
    return parity


def measure(
    running: dict[str, workers.Worker], options: argparse.Namespace
) -> dict[str, workers.Timings]:
    """Blocks of all sides in turns; the device is waited for at the end of a block only."""

    def block(worker: workers.Worker) -> Any:
        return lambda: worker.call("run", steps=options.steps, synchronize=False)

    for worker in running.values():
        worker.call("run", steps=3, synchronize=False)
    return workers.interleave(
        {name: block(worker) for name, worker in running.items()}, options.rounds
    )


def peak_of(kind: str) -> float | None:
    """Dense bfloat16 FLOP/s of a device by its name; None if it is not in the table."""
    return next((peak for part, peak in PEAKS.items() if part in kind), None)


if __name__ == "__main__":
    main()
