"""Learning that tells little about any one example: `Private` is DP-SGD, by `PrivacyConfig`.

`per_example` and `ghost` are two ways to the same clipped sum, microbatch by microbatch.
"""

from research.learning.private.parts import places
from research.learning.private.privacy_config import PrivacyConfig
from research.learning.private.private import Private, PrivateState

__all__ = ["PrivacyConfig", "Private", "PrivateState", "places"]
