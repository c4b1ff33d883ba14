"""The arithmetic of a compiled program: FLOPs of its matrix products on one device.

A product of [b, m, k] and [b, k, n] is 2·b·m·k·n FLOPs, as often as the loops around it run;
what is elementwise is left out. XLA's own cost analysis counts the body of a loop once.
"""

import math
import re

from research.parallel.hlo import Computation, Instruction, Program


def matrix_flops(program: Program) -> float:
    """Of one run of `program`, on one device."""
    return float(
        sum(
            visit.times * _flops(visit.instruction, visit.computation) for visit in program.visits()
        )
    )


def _flops(instruction: Instruction, computation: Computation) -> int:
    if instruction.opcode == "dot":
        left = computation.operands(instruction)[0]
        listed = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.attributes)
        contracted = [int(each) for each in listed[1].split(",") if each] if listed else []
        return 2 * instruction.arrays[0].size * math.prod(left.shape[d] for d in contracted)
    if instruction.opcode == "convolution":
        kernel = computation.operands(instruction)[1]
        labels = re.search(r"dim_labels=\w+_(\w+)->", instruction.attributes)
        outputs = kernel.shape[labels[1].index("o")] if labels else 1
        return 2 * instruction.arrays[0].size * kernel.size // outputs
    return 0
