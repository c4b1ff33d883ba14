"""Programs are compiled once for all processes of a machine."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

PROGRAM = """
import logging, sys
from pathlib import Path
from research.parallel import processes
processes.initialize(1)
import jax, jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from research.parallel.compilation import compile_together, keep_programs
keep_programs(Path(sys.argv[1]))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
logging.basicConfig(level=logging.DEBUG)
mesh = Mesh(jax.devices(), ("data",))
split, whole = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
total = jax.jit(lambda x: (x * x).sum(), in_shardings=split, out_shardings=whole)
compiled = compile_together(total.lower(jax.ShapeDtypeStruct((4,), "float32", sharding=split)))
x = jax.make_array_from_callback((4,), split, lambda i: jnp.arange(4, dtype="float32")[i])
print("sum", float(compiled(x)))
"""


@pytest.mark.distributed
def test_processes_take_what_the_first_has_compiled(tmp_path: Path) -> None:
    """Of one that no process had compiled before, by the words of JAX's own log."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    common = os.environ | {
        "PYTHONPATH": str(ROOT),
        "RESEARCH_COORDINATOR": f"127.0.0.1:{port}",
        "RESEARCH_PROCESSES": "2",
        "JAX_PLATFORMS": "cpu",
    }
    started = [
        subprocess.Popen(
            [sys.executable, str(program), str(tmp_path / "programs")],
            env=common | {"RESEARCH_PROCESS": str(number)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    said = [process.communicate(timeout=120) for process in started]
    for out, log in said:
        assert "sum 14.0" in out, log
    first, second = (log for _, log in said)
    assert "CACHE MISS for 'jit__lambda'" in first
    assert "cache hit for 'jit__lambda'" in second
