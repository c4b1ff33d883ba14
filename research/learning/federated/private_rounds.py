"""What a round has to be for its privacy to be known: one clipped sum, of a Poisson cohort."""

from research.errors import UserError
from research.exchange.privacy import Event
from research.exchange.privacy.release import Release
from research.exchange.stages import check_chain
from research.learning.federated.federated_config import FederatedConfig
from research.learning.private import PrivacyConfig

PRIVATE = ("fedsgd", "fedavg", "fedprox")
"""Rules whose server sees nothing of clients but the sum of their moves."""


def check_private_rounds(federated: FederatedConfig, privacy: PrivacyConfig) -> None:
    """Raises UserError for clients whose privacy cannot be told, with the reason."""
    if federated.rule not in PRIVATE:
        raise UserError(
            f"the privacy of clients is accounted for one sum of their moves, and "
            f"--federated.rule {federated.rule} has none, or tells more: use {', '.join(PRIVATE)}"
        )
    aggregation = federated.aggregation
    if aggregation.compression != "none" or aggregation.groups > 1 or aggregation.secure:
        raise UserError(
            "noise is added to the sum of updates as they are clipped: use "
            "--federated.aggregation.compression none, .groups 1 and .secure False"
        )
    if federated.minimum > 1:
        raise UserError(
            f"--federated.minimum {federated.minimum} would end a run by how many clients there "
            "are, which is private: use 1"
        )
    if privacy.layers != "together" or privacy.quantile is not None:
        raise UserError(
            "bounds by layer and by quantile are for examples: use --privacy.layers together and "
            "--privacy.quantile None, with a --privacy.clip for the whole update"
        )
    release = Release(privacy.clip, Event(1.0, 1.0), 1.0)
    check_chain(
        federated.aggregation.stages(release=release), federated.sampling, federated.weighting
    )
