"""A robust rule, and an attack, as stages of a chain."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from research.exchange.attacks import Attack
from research.exchange.robust.rules import Robust
from research.exchange.stages import Round, Several, Stage

Tree = Any


def rule_stage(robust: Robust) -> Stage:
    """Its rule, with the mixing that it names."""

    def apply(x: Several, state: Tree, round: Round) -> tuple[Tree, Tree]:
        return robust.apply(x.updates, x.alive, state)

    return Stage(
        robust.rule,
        "all",
        "result",
        apply,
        init=robust.init,
        counts_alike=True,
        least=robust.least,
    )


def attack_stage(attack: Attack, byzantine: np.ndarray) -> Stage:
    """What those of the population who are `byzantine` [population] send instead."""

    def apply(x: Several, state: Tree, round: Round) -> tuple[Several, Tree]:
        bad = jnp.asarray(byzantine)[round.who]
        updates, alive, state = attack.apply(x.updates, x.alive, bad, state, round.step, round.key)
        return Several(updates, jnp.where(alive, x.weight, 0)), state

    # What it leaves are still updates that nobody but their senders has to have seen.
    return Stage(attack.name, "one", "one", apply, init=attack.init, gathers=True)
