"""What becomes of clients' updates on their way to the server, by configuration."""

from dataclasses import dataclass
from typing import Literal

from research.configuration import check_bounds
from research.exchange.codecs import CODECS
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

    def check(self) -> None:
        """Raises UserError for a value that no run can have."""
        bounds = (
            ("clip", self.clip, self.clip is None or self.clip > 0, "more than 0, or None"),
            ("ratio", self.ratio, 0 < self.ratio <= 1, "more than 0, at most 1"),
        )
        check_bounds("federated.aggregation", bounds)

    def stages(self) -> list[Stage]:
        """The chain; see `check_chain`."""
        made = []
        if self.clip is not None:
            made.append(clip(self.clip))
        if self.compression == "top_k":
            made.append(largest(self.ratio))
        elif self.compression in CODECS:
            made.append(coded(self.compression, CODECS[self.compression]()))
        return [*made, mean()]
