"""The rules by their names: what each asks for, and what a user is told who has not got it."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from research.errors import UserError
from research.exchange.robust.bulyan import bulyan
from research.exchange.robust.clipping import centered_clipping, norm_clipping
from research.exchange.robust.coordinates import median, trimmed_mean
from research.exchange.robust.geometric_median import geometric_median
from research.exchange.robust.krum import krum, multi_krum
from research.exchange.robust.nearest_neighbors import nearest_neighbors
from research.exchange.updates import mean

Tree = Any

RobustRule = Literal[
    "median",
    "trimmed_mean",
    "geometric_median",
    "krum",
    "multi_krum",
    "bulyan",
    "norm_clipping",
    "centered_clipping",
]
"""The names of the rules."""


class Rule(NamedTuple):
    """One rule."""

    apply: Callable[[Tree, jax.Array, int, float, Tree], Tree]
    """`apply(x, alive, byzantine, radius, before)`: one update of those in x [n, ...]; `before` is
    the result of the last time."""
    times: int = 2
    more: int = 1
    """It asks for n ≥ times · f + more."""
    remembers: bool = False
    """Whether it looks at `before`."""

    def least(self, byzantine: int) -> int:
        """The fewest updates that it withstands `byzantine` of."""
        return self.times * byzantine + self.more


RULES = {
    "mean": Rule(lambda x, alive, f, r, v: mean(x, alive), times=0),
    "median": Rule(lambda x, alive, f, r, v: median(x, alive)),
    "trimmed_mean": Rule(lambda x, alive, f, r, v: trimmed_mean(x, alive, f)),
    "geometric_median": Rule(lambda x, alive, f, r, v: geometric_median(x, alive)),
    "krum": Rule(lambda x, alive, f, r, v: krum(x, alive, f), more=3),
    "multi_krum": Rule(lambda x, alive, f, r, v: multi_krum(x, alive, f), more=3),
    "bulyan": Rule(lambda x, alive, f, r, v: bulyan(x, alive, f), times=4, more=3),
    "norm_clipping": Rule(lambda x, alive, f, r, v: norm_clipping(x, alive, r)),
    "centered_clipping": Rule(
        lambda x, alive, f, r, v: centered_clipping(x, alive, v, r), remembers=True
    ),
}
MIXINGS: dict[str, Callable[[Tree, jax.Array, int], Tree]] = {
    "nearest_neighbors": nearest_neighbors
}


@dataclass(frozen=True)
class Robust:
    """A rule for f = `byzantine` of all updates."""

    rule: str
    byzantine: int = 0
    radius: float = 1.0
    mixing: str = "none"

    @property
    def least(self) -> int:
        """The fewest updates that it is for."""
        mixed = 0 if self.mixing == "none" else 2 * self.byzantine + 1
        return max(RULES[self.rule].least(self.byzantine), mixed)

    def init(self, like: Tree) -> Tree:
        """What it keeps at the start: the result before the first, zeros."""
        return jax.tree.map(jnp.zeros_like, like) if RULES[self.rule].remembers else ()

    def apply(self, x: Tree, alive: jax.Array, before: Tree) -> tuple[Tree, Tree]:
        """One update of x [n, ...], and what it keeps. Zeros, and no change of that, where fewer
        are alive than it is for."""
        rule = RULES[self.rule]
        if self.mixing != "none":
            x = MIXINGS[self.mixing](x, alive, self.byzantine)
        one = rule.apply(x, alive, self.byzantine, self.radius, before)
        enough = jnp.sum(alive) >= self.least
        one = jax.tree.map(lambda leaf: jnp.where(enough, leaf, 0), one)
        if not rule.remembers:
            return one, before
        return one, jax.tree.map(partial(jnp.where, enough), one, before)


def check_breakdown(robust: Robust, count: int, of_what: str, flags: tuple[str, str]) -> None:
    """Raises UserError where `count` updates, called `of_what`, are too few; `flags` set f, n."""
    if count >= robust.least:
        return
    rule, f = RULES[robust.rule], robust.byzantine
    name = robust.rule if rule.least(f) == robust.least else robust.mixing
    times, more = (rule.times, rule.more) if name == robust.rule else (2, 1)
    most = (count - more) // times if times else f
    fewer = f"{flags[0]} {most}, or " if most >= 0 else ""
    raise UserError(
        f"{name} withstands f Byzantine of n ≥ {times}·f + {more}, and {count} {of_what} are fewer "
        f"than the {robust.least} that f = {f} asks for: use {fewer}{flags[1]} {robust.least}"
    )
