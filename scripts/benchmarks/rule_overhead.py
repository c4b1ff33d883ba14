"""What a rule's own arithmetic costs beside the step: int8 and PowerSGD on GPT-2 124M.

    python scripts/benchmarks/rule_overhead.py [--threads 2] [--batch 1] [--context 512] [--quick]

Times, in turns and in one process, the plain compiled step of configs/gpt2_124m.py (forward,
backward and update, on `--batch` sequences of `--context` tokens; on a CPU in float32) and what a
rule does with gradients of its shapes, `on_gradients` of two replicas that share the device. No
byte crosses a wire, so what is left is arithmetic and memory traffic; both replicas are computed,
and half of the time is one's.

A rule's time does not depend on the batch, and the step's grows with it: the ratio is that of the
stated tokens, and falls as they grow. Beside it stand the tokens a replica from which on a rule
takes less than 1 % of a step that is as fast a token as this one. Two minutes or more on 2 cores,
and 9 GB.
"""

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from harness import REPOSITORY, results, workers

STEP = "plain step"
SHARE = 0.01
REPLICAS = 2


def main() -> None:
    """Measures, prints a table and writes the result."""
    options = parse()
    before = results.provenance(threads=options.threads)
    # Before JAX is imported: its threads stay where the process is confined.
    if options.threads:
        workers.confine(workers.choose_cpus(options.threads))
    os.environ.setdefault("JAX_PLATFORMS", "cpu" if options.threads else "")

    import jax

    from research.exchange import powersgd, two_shot
    from research.exchange.codecs import CODECS
    from research.learning.replicated.local_updates import every_step

    prepared = ready(options)
    tokens = prepared.units_per_step
    rules = {
        "int8, two shots": every_step(two_shot(CODECS["int8"](), REPLICAS)),
        "PowerSGD, rank 4": every_step(powersgd(4)),
    }
    with jax.set_mesh(prepared.mesh):
        blocks = {STEP: plain(prepared)}
        shapes = prepared.learner.abstract_state.parameters
        gradients = random_gradients(shapes)
        for name, rule in rules.items():
            blocks[name] = alone(rule, gradients, options.steps)
        for block in blocks.values():
            block()
        timings = workers.interleave(blocks, options.rounds)

    rows, sides = [], {}
    for name, timing in timings.items():
        side = results.summary(timing)
        wall = side["seconds"]
        cells = [f"{1e3 * wall[part]:.1f}" for part in ("median", "quarter", "three_quarters")]
        if name != STEP:
            side["ratio_to_step"] = {
                "wall": results.paired_ratio(timing.wall, timings[STEP].wall),
                "cpu": results.paired_ratio(timing.cpu, timings[STEP].cpu),
            }
            ratio, of_cpu = (side["ratio_to_step"][of]["median"] for of in ("wall", "cpu"))
            side["tokens_for_one_percent"] = tokens * ratio / SHARE
            cells += [f"{100 * ratio:.1f} %", f"{100 * of_cpu:.1f} %"]
            cells.append(f"{side['tokens_for_one_percent']:,.0f}")
        sides[name] = side
        rows.append([name, *cells, *[""] * (6 - len(cells))])
    print(f"one replica, {tokens:,} tokens a step, {jax.devices()[0].device_kind}")
    header = ["ms", "median", "25 %", "75 %", "of a step", "of its CPU", "tokens for 1 %"]
    results.table(header, rows)
    result = {
        "benchmark": "rule_overhead",
        "provenance": {**before, "load_average_after": results.provenance()["load_average"]},
        "device": jax.devices()[0].device_kind,
        "experiment": prepared.experiment.to_json(),
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(shapes)),
        "tokens_a_replica": tokens,
        "replicas": REPLICAS,
        "rounds": options.rounds,
        "sides": sides,
    }
    where = f"{options.threads}_threads" if options.threads else "accelerator"
    results.write(f"rule_overhead_{where}", result, options)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = results.parser(__doc__)
    parser.add_argument(
        "--threads", type=int, default=2, help="CPUs that the process may use (2); 0: a GPU"
    )
    parser.add_argument("--batch", type=int, default=1, help="sequences of a replica (1)")
    parser.add_argument("--context", type=int, default=512, help="tokens of a sequence (512)")
    parser.add_argument("--layers", type=int, default=12, help="of the model (12)")
    parser.add_argument("--rounds", type=int, default=5, help="blocks of every kind (5)")
    parser.add_argument("--steps", type=int, default=2, help="exchanges a block (2)")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.steps, options.layers, options.context = 2, 1, 1, 32
    return options


def ready(options: argparse.Namespace) -> Any:
    """GPT-2 124M for one device, on bytes with the full table, without gradient accumulation."""
    import jax

    from research.experiment import Experiment, MeshConfig
    from research.prepared import Prepared

    base = Experiment.load(REPOSITORY / "configs/gpt2_124m.py")
    dtype = "float32" if jax.default_backend() == "cpu" else base.model.dtype
    data = replace(base.data, vocabulary="byte", batch=options.batch, context=options.context)
    experiment = replace(
        base,
        model=replace(base.model, layers=options.layers, dtype=dtype),
        data=data,
        optimizer=replace(base.optimizer, microbatches=1),
    )
    return Prepared(experiment, MeshConfig().build(jax.devices()[:1]))


Block = Callable[[], tuple[list[float], list[float]]]


def plain(prepared: Any) -> Block:
    """A step on one batch that stays on the device."""
    import jax

    step, batch = prepared.compile(), next(prepared.feed(0))
    kept = {"state": prepared.learner.init()}

    def once() -> None:
        kept["state"], _ = jax.block_until_ready(step(kept["state"], batch))

    return lambda: timed(once, 1)


def random_gradients(shapes: Any) -> Any:
    """[replicas, ...] for every array: normal, as small as gradients are."""
    import jax

    leaves, structure = jax.tree.flatten(shapes)
    make = jax.jit(lambda key, shape: 1e-3 * jax.random.normal(key, shape), static_argnames="shape")
    keys = jax.random.split(jax.random.key(0), len(leaves))
    made = [make(key, (REPLICAS, *leaf.shape)) for key, leaf in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(structure, made)


def alone(rule: Any, gradients: Any, count: int) -> Block:
    """`on_gradients` of both replicas, side by side on the device; seconds are those of one."""
    import jax
    import jax.numpy as jnp

    from research.exchange import Moment, Replicas
    from research.exchange.replicas import SEAT

    replicas = Replicas(devices=1, seats=REPLICAS)

    def of_one(number: jax.Array, own: Any, state: Any, step: jax.Array) -> tuple[Any, Any]:
        moment = Moment(replicas, step, number, jax.random.fold_in(jax.random.key(1), step))
        return rule.on_gradients(own, state, moment)

    exchange = jax.jit(jax.vmap(of_one, in_axes=(0, 0, 0, None), axis_name=SEAT), donate_argnums=2)
    start = jax.jit(jax.vmap(rule.init))(gradients)
    kept = {"state": start, "step": 0}
    numbers = jnp.arange(REPLICAS)

    def once() -> None:
        step = jnp.int32(kept["step"])
        _, state = jax.block_until_ready(exchange(numbers, gradients, kept["state"], step))
        kept.update(state=state, step=kept["step"] + 1)

    return lambda: timed(once, count, REPLICAS)


def timed(once: Callable[[], None], count: int, parts: int = 1) -> tuple[list[float], list[float]]:
    """Wall and CPU seconds of each of `count` calls, divided by `parts`."""
    wall, cpu = [], []
    for _ in range(count):
        began, began_cpu = time.perf_counter(), time.process_time()
        once()
        wall.append((time.perf_counter() - began) / parts)
        cpu.append((time.process_time() - began_cpu) / parts)
    return wall, cpu


if __name__ == "__main__":
    main()
