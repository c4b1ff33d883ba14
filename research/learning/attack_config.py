"""Who is Byzantine, and what they do, by configuration."""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from research.configuration import check_bounds
from research.errors import UserError
from research.exchange.attacks import ATTACKS, Attack

POISONINGS = ("label_flip", "backdoor")
"""Attacks on what clients learn from."""


@dataclass(frozen=True)
class AttackConfig:
    """Clients, or replicas, that do not do what they should."""

    name: Literal[
        "none",
        "sign_flip",
        "scaling",
        "gaussian",
        "alie",
        "ipm",
        "mimic",
        "label_flip",
        "backdoor",
    ] = "none"
    """sign_flip, scaling and gaussian are rude; alie sends what is just inside of the honest ones'
    spread, ipm a little of the opposite of their mean, mimic one of their own; label_flip clients
    learn from wrong labels, and backdoor ones that a mark in the corner means --attack.target."""

    count: int | None = None
    """Byzantine clients of the population, drawn once, or the last replicas (None: by share)."""

    share: float = 0.2
    """Share of all clients, or replicas, that are Byzantine, rounded down."""

    strength: float | None = None
    """z: what an update is multiplied by, or how far it lies off (None: as the attack's paper has
    it; backdoor: 1)."""

    target: int = 0
    """The label that a backdoor opens to."""

    def check(self) -> None:
        """Raises UserError for a value that no run can have."""
        count, strength = self.count, self.strength
        bounds = (
            ("count", count, count is None or count >= 0, "0 or more, or None"),
            ("share", self.share, 0 <= self.share < 1, "0 or more, and below 1"),
            ("strength", strength, strength is None or math.isfinite(strength), "a finite number"),
            ("target", self.target, self.target >= 0, "0 or more"),
        )
        check_bounds("attack", bounds)

    def number(self, of: int) -> int:
        """How many `of` all are Byzantine. Raises UserError where none would be left."""
        if self.name == "none":
            return 0
        count = int(self.share * of) if self.count is None else self.count
        if count >= of:
            raise UserError(
                f"--attack.count {count} leaves nobody honest of {of}: use {of - 1} or less"
            )
        return count

    def members(self, population: int, seed: int) -> np.ndarray:
        """bool [population]: who is Byzantine, by a draw from `seed`."""
        chosen = np.random.default_rng([seed, population]).permutation(population)
        made = np.zeros(population, bool)
        made[chosen[: self.number(population)]] = True
        return made

    def on_updates(self) -> Attack | None:
        """The attack on updates, if it is one."""
        if self.name == "backdoor" and self.strength not in (None, 1.0):
            return Attack("scaling", self.strength)
        return Attack(self.name, self.strength) if self.name in ATTACKS else None


NOBODY = AttackConfig()
"""No attack."""
