"""Which devices a collective joins, and along which axes of the mesh they lie.

XLA prints groups of devices in three forms: lists, `{{0,1},{2,3}}`; a range of numbers reshaped,
transposed and cut, `[4,2]<=[2,2,2]T(2,1,0)`; and axes of a mesh of its own,
`mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'b'}`. A number is a device's place in the mesh, row
by row.
"""

import math
import re
from collections.abc import Mapping

import numpy as np

_IOTA = r"\[([\d,]+)\](?:T\(([\d,]+)\))?"


def groups_of(attributes: str, devices: int) -> np.ndarray:
    """Numbers [groups, devices of a group] by the attribute `replica_groups`; all devices in one
    group where it is empty or missing. Raises ValueError for a form that is not known."""
    found = re.search(r"replica_groups=(.)", attributes)
    if found is None:
        return np.arange(devices)[None]
    text = attributes[found.end(1) - 1 :]
    if text.startswith("{"):
        if text.startswith("{}"):
            return np.arange(devices)[None]
        return _pairs(text)
    if text.startswith("mesh["):
        return _of_mesh(text)
    cut = re.match(rf"\[([\d,]+)\]<={_IOTA}", text)
    if cut is None:
        raise ValueError(f"device groups in an unknown form: {text[:80]}")
    return _iota(cut[2], cut[3]).reshape(_numbers(cut[1]))


def pairs_of(attributes: str) -> np.ndarray:
    """Numbers [pairs, 2] of the devices that send and receive in a collective-permute."""
    found = re.search(r"source_target_pairs=(?=\{)", attributes)
    return _pairs(attributes[found.end() :]) if found else np.zeros((0, 2), int)


def axes_of(groups: np.ndarray, mesh: Mapping[str, int]) -> tuple[str, ...]:
    """The mesh axes along which the devices of a group (or pair) differ."""
    places = np.stack(np.unravel_index(groups, tuple(mesh.values())), axis=-1)
    differs = np.any(places != places[:, :1], axis=(0, 1))
    return tuple(axis for axis, is_crossed in zip(mesh, differs, strict=True) if is_crossed)


def _of_mesh(text: str) -> np.ndarray:
    found = re.match(rf"mesh\[([^\]]*)\](?:, device_ids=\({_IOTA}\))? ?(\{{[^}}]*\}})?", text)
    if found is None:
        raise ValueError(f"device groups in an unknown form: {text[:80]}")
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", found[1])}
    count = math.prod(sizes.values())
    ids = _iota(found[2], found[3]) if found[2] else np.arange(count)
    taken = re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", found[4] or "")
    # A part of an axis, 'a':(2)4, is one of three that the axis is cut into.
    shape: list[int] = []
    inside: list[int] = []
    for name, size in sizes.items():
        parts = [(int(before), int(own)) for axis, before, own in taken if axis == name and own]
        if name in [axis for axis, _, own in taken if not own]:
            inside.append(len(shape))
        elif parts:
            before, own = parts[0]
            if len(parts) > 1:
                raise ValueError(f"device groups in an unknown form: {text[:80]}")
            inside.append(len(shape) + 1)
            shape += [before, own]
            size //= before * own
        shape.append(size)
    outside = [axis for axis in range(len(shape)) if axis not in inside]
    moved = ids.reshape(shape).transpose(*outside, *inside)
    return moved.reshape(-1, math.prod(shape[axis] for axis in inside))


def _iota(sizes: str, order: str | None) -> np.ndarray:
    shape = _numbers(sizes)
    made = np.arange(math.prod(shape)).reshape(shape)
    return (made if order is None else made.transpose(_numbers(order))).reshape(-1)


def _pairs(text: str) -> np.ndarray:
    """The lists of numbers at the beginning of `text`, of one length each."""
    end = text.find("}}")
    inner = re.findall(r"\{([\d,]*)\}", text[1 : end + 1])
    return np.array([_numbers(each) for each in inner], int)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(each) for each in text.split(","))
