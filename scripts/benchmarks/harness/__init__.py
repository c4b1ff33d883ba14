"""What the benchmarks share: worker processes, interleaved measurements, results with provenance.

`workers` starts contestants as processes and measures them in turns, `results` sums up and writes
JSON, `reigen_worker` and `torch_worker` are the contestants, `torch_gpt` is PyTorch's model.
Importing this makes `research` the package of the checkout that the benchmark lies in.
"""

import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[1]
REPOSITORY = BENCHMARKS.parents[1]

if str(REPOSITORY) not in sys.path:
    sys.path.insert(0, str(REPOSITORY))
