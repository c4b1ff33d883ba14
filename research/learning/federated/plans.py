"""The plans of a round: how many clients of a device are computed side by side."""

from typing import Literal

from research.errors import UserError

Plan = Literal["scan", "vmap", "chunk", "auto"]


def width_of(plan: Plan, width: int | None, here: int) -> int:
    """Of the clients of a device, `here` of them, how many are side by side; of plan `auto`, of
    which nothing was measured, as of scan. `width` is of chunk (None: about 10).

    Raises UserError for one that does not divide them.
    """
    if plan != "chunk":
        return here if plan == "vmap" else 1
    width = min(width or _about_ten(_divisors(here)), here)
    if here % width:
        raise UserError(
            f"--federated.width {width} does not divide the {here} clients of a device: "
            f"use one of {', '.join(map(str, _divisors(here)))}"
        )
    return width


def tried(width: int | None, here: int) -> dict[str, tuple[Plan, int | None]]:
    """What `auto` may choose from, plan and width by name, that first which needs the least
    memory."""
    made: dict[str, tuple[Plan, int | None]] = {"scan": ("scan", None)}
    if groups := _divisors(here)[1:-1]:
        width = width or _about_ten(groups)
        made[f"chunk --federated.width {width}"] = ("chunk", width)
    return made | {"vmap": ("vmap", None)}


def _divisors(number: int) -> list[int]:
    return [each for each in range(1, number + 1) if number % each == 0]


def _about_ten(widths: list[int]) -> int:
    return min(widths, key=lambda width: abs(width - 10))
