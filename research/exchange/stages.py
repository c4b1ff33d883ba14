"""What becomes of updates on their way into one: stages, and what each of them sees.

    one    a single update, at whoever made it              clipped, compressed
    all    the updates side by side, [n, ...]               mixed, or made one by a robust rule
    sum    nothing but the sum of them, Σ_k p_k·x_k         noised, divided by Σ_k p_k

After a sum no single update is left to be seen, and a secure one has promised that none was. So a
chain of stages has a type, and one that has none is refused before anything runs.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from research.errors import UserError
from research.exchange.updates import weighted

Tree = Any
Sees = Literal["one", "all", "sum"]
Gives = Literal["one", "all", "sum", "result"]


class Round(NamedTuple):
    """What a stage is told beside what it sees."""

    step: jax.Array  # [] int32: rounds made before
    key: jax.Array  # of this stage and round, and of the one who made the update
    weight: jax.Array | float = 1.0  # [] float32: Σ_k p_k, for what sees the sum
    who: jax.Array | None = None  # [n] int32: whose updates they are, for what sees all


class Several(NamedTuple):
    """What sees all sees."""

    updates: Tree  # x [n, ...]; zeros of those that are not alive
    weight: jax.Array  # [n] float32: p, 0 of those that are not alive

    @property
    def alive(self) -> jax.Array:
        """[n] bool: who answered."""
        return self.weight > 0

    @property
    def total(self) -> Tree:
        """Σ_k p_k·x_k."""
        return weighted(self.updates, self.weight)


Apply = Callable[[Tree, Tree, Round], tuple[Tree, Tree]]


class Stage(NamedTuple):
    """One stage."""

    name: str  # as a user would ask for it
    sees: Sees
    gives: Gives
    apply: Apply
    """`apply(x, state, round)`: what it makes of what it sees, and its state; a state is the
    server's, so what sees one update leaves it as it is. What sees all gets `Several`, and returns
    such unless it gives a result."""
    init: Callable[[Tree], Tree] = lambda like: ()
    """`init(like)`: the state at the start, for updates like this. Stages of one name share it."""
    sent: Callable[[Tree], int] | None = None
    """`sent(like)`: bytes of an update after it (None: as many as before)."""
    bounds: bool = False
    """Whether no update is larger, after it, than a number that does not depend on data."""
    charges: bool = False
    """Whether a privacy budget is charged for it, by what `bounds` promised."""
    counts_alike: bool = False
    """Whether it takes one update for as good as any other, whatever it weighs."""
    least: int = 1
    """The fewest updates that it is for."""
    gathers: bool = False
    """Whether it is done to `Several` updates at once, though nobody sees more than one."""
    secret: bool = False
    """Whether what it has seen is hidden from all that follow."""


def mean() -> Stage:
    """Σ_k p_k·x_k / Σ_k p_k."""

    def divide(total: Tree, state: Tree, round: Round) -> tuple[Tree, Tree]:
        return jax.tree.map(lambda x: x / round.weight, total), state

    return Stage("mean", "sum", "result", divide)


def check_chain(
    stages: Sequence[Stage], sampling: str = "uniform", weighting: str = "uniform"
) -> None:
    """Raises UserError for stages that cannot follow one another, with the reason; `sampling` is
    how those who send updates are drawn, `weighting` what they weigh by."""
    seen: Gives = "one"
    for number, stage in enumerate(stages):
        before = stages[number - 1].name if number else ""
        if seen == "result":
            raise UserError(f"{before} has made one update of all: {stage.name} cannot follow it")
        hidden = [each.name for each in stages[:number] if each.secret]
        if hidden and seen == "sum" and stage.sees == "all":
            raise UserError(
                f"{stage.name} sees single updates, and a {hidden[0]} of all shows nobody more "
                "than that: use --federated.aggregation.groups, whose sums stay secret and among "
                f"whose means it chooses ({stage.least} or more), or "
                "--federated.aggregation.secure False"
            )
        if seen == "sum" and stage.sees != "sum":
            raise UserError(
                f"{stage.name} sees single updates, and after {before} there is nothing but their "
                f"sum: put {stage.name} before it"
            )
        if seen == "all" and stage.sees == "one":
            raise UserError(
                f"{stage.name} is done to an update where it is made, and {before} has taken all "
                f"of them together: put {stage.name} before it"
            )
        if stage.counts_alike and weighting != "uniform":
            raise UserError(
                f"{stage.name} counts clients alike, and --federated.weighting is {weighting}, "
                "which a client could lie about: use --federated.weighting uniform"
            )
        if stage.charges:
            _check_accounting(stage, stages[:number], sampling)
        seen = stage.gives
    if seen != "result":
        raise UserError(f"{stages[-1].name} leaves no single update: end with a mean, or a rule")


def _check_accounting(stage: Stage, before: Sequence[Stage], sampling: str) -> None:
    """That the sum which noise is added to is one that the accountants know."""
    if not any(each.bounds for each in before):
        raise UserError(
            f"{stage.name} hides a client only if what it adds to the sum is bounded, and nothing "
            "before it clips: put a clip before the sum"
        )
    together = [each.name for each in before if each.sees == "all"]
    if together:
        raise UserError(
            f"{stage.name} is made for a sum of clipped updates, and no bound is known for what "
            f"{together[0]} makes of them when one changes: use --federated.aggregation.rule mean"
        )
    if sampling != "poisson":
        raise UserError(
            f"the privacy of {stage.name} is that of cohorts which each client joins by a draw of "
            f"its own, and --federated.sampling is {sampling}: use --federated.sampling poisson"
        )


def size_of(tree: Tree) -> int:
    """Of the arrays of `tree` (bytes)."""
    return sum(leaf.size * jnp.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(tree))
