"""The arithmetic of a compiled program: FLOPs of its matrix products on one device.

A product of [b, m, k] and [b, k, n] is 2·b·m·k·n FLOPs, as often as the loops around it run;
what is elementwise is left out. XLA's own cost analysis counts the body of a loop once.
"""

import math
import re

import numpy as np

from research.parallel.hlo import Array, Computation, Instruction, Program


def matrix_flops(program: Program, trips: float = 1, branches: bool = True) -> float:
    """Of one run of `program`, on one device: loops of unknown length run `trips` times, and all
    conditional `branches`, or none."""
    return float(
        sum(
            each.times * trips**each.unknown * _flops(each.instruction, each.computation)
            for each in program.visits()
            if branches or not each.branches
        )
    )


def _flops(instruction: Instruction, computation: Computation) -> int:
    if instruction.opcode == "dot":
        left = computation.operands(instruction)[0]
        listed = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.attributes)
        contracted = [int(each) for each in listed[1].split(",") if each] if listed else []
        return 2 * instruction.arrays[0].size * math.prod(left.shape[d] for d in contracted)
    if instruction.opcode == "convolution":
        return _convolution(instruction, *computation.operands(instruction)[:2])
    return 0


def _convolution(instruction: Instruction, image: Array, kernel: Array) -> int:
    """TPUs have no other product: what is batched or contracted there may be a spatial dimension,
    so that most of what a kernel meets is padding, or holes between the image's elements."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
    if labels is None:
        return 0
    of_image, of_kernel, of_result = labels[1], labels[2], labels[3]
    features = kernel.shape[of_kernel.index("o")] * kernel.shape[of_kernel.index("i")]
    groups = int(instruction.attribute("batch_group_count") or 1)
    flops = 2 * image.shape[of_image.index("b")] // groups * features
    windows = _windows(instruction.attributes)

    def number(key: str, place: int, otherwise: int) -> int:
        return int(windows[key][place].split("_")[0]) if key in windows else otherwise

    for place in range(len(of_image) - 2):
        flops *= _pairs(
            image.shape[of_image.index(str(place))],
            kernel.shape[of_kernel.index(str(place))],
            instruction.arrays[0].shape[of_result.index(str(place))],
            stride=number("stride", place, 1),
            spread=number("lhs_dilate", place, 1),
            kernel_spread=number("rhs_dilate", place, 1),
            padding=number("pad", place, 0),
        )
    return flops


def _windows(attributes: str) -> dict[str, list[str]]:
    """`window={size=3x3 pad=1_1x1_1}` as lists, a value for every spatial dimension."""
    found = re.search(r"window=\{([^}]*)\}", attributes)
    entries = (each.split("=") for each in found[1].split()) if found else ()
    return {key: values.split("x") for key, values in entries}


def _pairs(
    image: int,
    kernel: int,
    result: int,
    stride: int,
    spread: int,
    kernel_spread: int,
    padding: int,
) -> int:
    """How many pairs of an element of the image and one of the kernel meet, along one dimension of
    sizes `image`, `kernel` and `result`."""
    offsets = np.arange(kernel) * kernel_spread - padding  # of the kernel's elements
    if stride == spread == 1:
        first, last = np.maximum(offsets, 0), np.minimum(offsets + result, image)
        return int(np.maximum(last - first, 0).sum())
    places = np.arange(image)[:, None] * spread - offsets  # of the result, times its stride
    return int(((places % stride == 0) & (places >= 0) & (places < result * stride)).sum())
