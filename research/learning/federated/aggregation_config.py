"""What becomes of clients' updates on their way to the server, by configuration."""

from dataclasses import dataclass
from typing import Literal

from research.configuration import check_bounds
from research.errors import UserError
from research.exchange.codecs import CODECS
from research.exchange.groups import check_groups, open_groups, secure_groups
from research.exchange.privacy.release import Release, expected_mean
from research.exchange.robust import Robust, RobustRule, check_breakdown, rule_stage
from research.exchange.secure_aggregation import FixedPoint
from research.exchange.senders import clip, coded, largest
from research.exchange.stages import Stage, mean

ROUNDING = 1.001
"""A number of a clipped update may be larger than the norm, by the rounding of both."""


@dataclass(frozen=True)
class AggregationConfig:
    """The stages of a round, in the order of these fields."""

    momentum: float = 0.0
    """β: a client sends the momentum of its own moves, which it keeps from round to round, for a
    robust rule (0: its move)."""

    clip: float | None = None
    """Norm that a client's update is clipped to (None: not at all)."""

    compression: Literal["none", "bfloat16", "int8", "sign", "qsgd", "top_k"] = "none"
    """What an update becomes on the wire. All but qsgd have a bias, for which nothing makes up: a
    client that is not there again for long keeps no errors to feed back."""

    ratio: float = 0.01
    """Share of the entries that top_k sends."""

    groups: int = 1
    """G: random groups of a cohort, whose means the rule is of (1: it is of single updates)."""

    secure: bool = False
    """Whether nobody sees more than the sum of each group, in 32-bit integers. It wants a clip, and
    3 clients or more of every group that answer."""

    bits: int = 20
    """Of a number in a secure sum, the sign included; with the clients of a group log2 of their
    number more, of 32."""

    mixing: Literal["none", "nearest_neighbors"] = "none"
    """What every update becomes before the rule: the mean of those near to it."""

    rule: Literal["mean", RobustRule] = "mean"
    """What makes one update of all. All but mean count clients alike and withstand some that send
    anything: median and trimmed_mean in every coordinate, geometric_median together, krum takes one
    update, multi_krum and bulyan the mean of several, norm_clipping and centered_clipping let
    nobody pull harder than the radius."""

    byzantine: int = 0
    """f: how many of a cohort may send anything."""

    radius: float = 1.0
    """τ of norm_clipping and centered_clipping."""

    def check(self, cohort: int) -> None:
        """Raises UserError for a value that no run can have."""
        bounds = (
            ("momentum", self.momentum, 0 <= self.momentum < 1, "0 or more, and below 1"),
            ("clip", self.clip, self.clip is None or self.clip > 0, "more than 0, or None"),
            ("ratio", self.ratio, 0 < self.ratio <= 1, "more than 0, at most 1"),
            ("groups", self.groups, 1 <= self.groups <= cohort, f"1 to {cohort}, the cohort"),
            ("bits", self.bits, 2 <= self.bits < 32, "2 to 31"),
            ("byzantine", self.byzantine, self.byzantine >= 0, "0 or more"),
            ("radius", self.radius, self.radius > 0, "more than 0"),
        )
        check_bounds("federated.aggregation", bounds)
        if self.momentum and self.rule == "mean":
            raise UserError(
                f"--federated.aggregation.momentum {self.momentum} is for a robust rule, and "
                "--federated.aggregation.rule is mean: use 0, or rule median (--help lists the "
                "others), or for a mean --federated.server.beta1"
            )
        if self.secure:
            self._check_secure(cohort)
        flags = "--federated.aggregation.byzantine", "--federated.cohort"
        count, what = cohort, "clients of a cohort"
        if self.groups > 1:
            flags, count, what = (flags[0], "--federated.aggregation.groups"), self.groups, "groups"
        check_breakdown(self._robust, count, what, flags)

    def _check_secure(self, cohort: int) -> None:
        check_groups(self.groups, cohort)
        if self.clip is None:
            raise UserError(
                "a secure sum is of numbers in a range, and nothing bounds these: use "
                "--federated.aggregation.clip 1.0, or another norm that updates rarely have"
            )
        if self.compression != "none":
            raise UserError(
                f"codes of {self.compression} do not add up, and a secure sum is all that is seen: "
                "use --federated.aggregation.compression none, and fewer bits"
            )
        self._codec.check(-(-cohort // self.groups))

    @property
    def _codec(self) -> FixedPoint:
        assert self.clip is not None
        return FixedPoint(ROUNDING * self.clip, self.bits)

    @property
    def _robust(self) -> Robust:
        return Robust(self.rule, self.byzantine, self.radius, self.mixing)

    def stages(self, attack: Stage | None = None, release: Release | None = None) -> list[Stage]:
        """The chain, with an `attack` on what is sent, and with what a private one may `release`;
        see `check_chain`."""
        made = []
        if self.clip is not None:
            made.append(clip(self.clip))
        if self.compression == "top_k":
            made.append(largest(self.ratio))
        elif self.compression in CODECS:
            made.append(coded(self.compression, CODECS[self.compression]()))
        if attack is not None:
            made.append(attack)
        if self.secure:
            made.append(secure_groups(self.groups, self._codec))
        elif self.groups > 1:
            made.append(open_groups(self.groups))
        plain = self.rule == "mean" and self.mixing == "none"
        if release is not None:
            made += release.stages()
            return [*made, expected_mean(release.expected) if plain else rule_stage(self._robust)]
        return [*made, mean() if plain else rule_stage(self._robust)]
