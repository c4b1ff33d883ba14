"""What becomes of clients' updates on their way to the server, by configuration."""

from dataclasses import dataclass
from typing import Literal

from research.configuration import check_bounds
from research.exchange.codecs import CODECS
from research.exchange.robust import Robust, check_breakdown, rule_stage
from research.exchange.senders import clip, coded, largest
from research.exchange.stages import Stage, mean


@dataclass(frozen=True)
class AggregationConfig:
    """The stages of a round, in the order of these fields."""

    clip: float | None = None
    """Norm that a client's update is clipped to (None: not at all)."""

    compression: Literal["none", "bfloat16", "int8", "sign", "qsgd", "top_k"] = "none"
    """What an update becomes on the wire. All but qsgd have a bias, for which nothing makes up: a
    client that is not there again for long keeps no errors to feed back."""

    ratio: float = 0.01
    """Share of the entries that top_k sends."""

    mixing: Literal["none", "nearest_neighbors"] = "none"
    """What every update becomes before the rule: the mean of those near to it."""

    rule: Literal[
        "mean",
        "median",
        "trimmed_mean",
        "geometric_median",
        "krum",
        "multi_krum",
        "bulyan",
        "norm_clipping",
        "centered_clipping",
    ] = "mean"
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
            ("clip", self.clip, self.clip is None or self.clip > 0, "more than 0, or None"),
            ("ratio", self.ratio, 0 < self.ratio <= 1, "more than 0, at most 1"),
            ("byzantine", self.byzantine, self.byzantine >= 0, "0 or more"),
            ("radius", self.radius, self.radius > 0, "more than 0"),
        )
        check_bounds("federated.aggregation", bounds)
        flags = "--federated.aggregation.byzantine", "--federated.cohort"
        check_breakdown(self._robust, cohort, "clients of a cohort", flags)

    @property
    def _robust(self) -> Robust:
        return Robust(self.rule, self.byzantine, self.radius, self.mixing)

    def stages(self, attack: Stage | None = None) -> list[Stage]:
        """The chain, with an `attack` on what is sent; see `check_chain`."""
        made = []
        if self.clip is not None:
            made.append(clip(self.clip))
        if self.compression == "top_k":
            made.append(largest(self.ratio))
        elif self.compression in CODECS:
            made.append(coded(self.compression, CODECS[self.compression]()))
        if attack is not None:
            made.append(attack)
        plain = self.rule == "mean" and self.mixing == "none"
        return [*made, mean() if plain else rule_stage(self._robust)]
