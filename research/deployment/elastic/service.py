"""JAX's coordination service in a process of its own: no worker that dies takes it along.

    python -m research.deployment.elastic.service

reads one line, `ADDRESS PROCESSES HEARTBEAT_SECONDS`, serves there, says `serving`, and ends with
its standard input, later by as long as workers may go on saving then. It needs jaxlib only, and is
started before it is needed.
"""

import sys
import time

from research.parallel.processes import ORPHAN_SECONDS


def main() -> None:
    """Serves one generation."""
    from jaxlib import _jax

    line = sys.stdin.readline().split()
    if not line:
        return
    address, processes, seconds = line[0], int(line[1]), int(line[2])
    service = _jax.get_distributed_runtime_service(
        address, processes, heartbeat_timeout=seconds, shutdown_timeout=30
    )
    print("serving", flush=True)
    sys.stdin.read()
    time.sleep(ORPHAN_SECONDS)
    del service


if __name__ == "__main__":
    main()
