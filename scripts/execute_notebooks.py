"""Executes notebooks from top to bottom and fails where a cell does.

    python scripts/execute_notebooks.py [--output FOLDER] [--timeout SECONDS] NOTEBOOK...

Each runs in a kernel of this interpreter with the notebook's own folder as working directory. The
notebooks themselves are left as they are; copies with their outputs, also of one that failed, are
written to FOLDER. Exit status 1 when a notebook failed, after all of them have been tried.
"""

import argparse
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError


def execute(path: Path, output: Path, timeout: int) -> str | None:
    """Executes one notebook, at most `timeout` seconds a cell; what went wrong, or None."""
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=timeout,
        kernel_name="python3",
        resources={"metadata": {"path": str(path.parent)}},
    )
    try:
        client.execute()
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
        return str(error)
    finally:
        output.mkdir(parents=True, exist_ok=True)
        nbformat.write(notebook, output / path.name)
    return None


def main() -> int:
    """Executes the notebooks named on the command line; the exit status."""
    parser = argparse.ArgumentParser(description="Execute notebooks; fail where a cell does.")
    parser.add_argument("notebooks", nargs="*", type=Path)
    parser.add_argument("--output", type=Path, default=Path("build/notebooks"))
    parser.add_argument("--timeout", type=int, default=300, help="seconds a cell may take")
    arguments = parser.parse_args()
    if not arguments.notebooks:
        print("no notebooks")
    failed = 0
    for path in arguments.notebooks:
        start = time.perf_counter()
        problem = execute(path, arguments.output, arguments.timeout)
        seconds = time.perf_counter() - start
        print(f"{path}: {'failed' if problem else 'executed'} in {seconds:.1f} s", flush=True)
        if problem:
            failed += 1
            print(problem, file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
