"""The forecast of a run's cost. Knows numbers alone."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class Forecast:
    """The cost of a run in which every client answers. Bytes are those of the messages that it would send."""

    name: str
    rounds: int
    cohort: int
    clients: int
    parameters: int
    bytes_up: int
    bytes_down: int
    float32_bytes_up: int
    float32_bytes_down: int
    participations: int  # largest number of rounds in which any client is asked
    epsilon: float | None
    delta: float | None
    noise_multiplier: float | None
    steps: int | None  # noised steps in one participation
    sample_rate: float | None
    memory_bytes: int  # arrays of one process at its peak, without interpreter and libraries
    client_level: "ClientLevelForecast | None" = None


@dataclass(frozen=True)
class ClientLevelForecast:
    """The cost of client-level DP for one client."""

    epsilon: float
    delta: float
    noise_multiplier: float
    rounds: int  # that count against one client
    sample_rate: float  # 1: the sampling of clients gives no amplification
    noise_norm: float  # expected L2 norm of the noise on a mean update, in clip norms
