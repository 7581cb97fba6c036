"""What a run will cost, as numbers and as a table. Knows numbers; not how they were found."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class Forecast:
    """The cost of a run in which every client answers. Bytes are those of the very messages it would send."""

    name: str
    rounds: int
    cohort: int
    clients: int
    parameters: int
    bytes_up: int
    bytes_down: int
    float32_bytes_up: int
    float32_bytes_down: int
    participations: int  # the most rounds that any client is asked in
    epsilon: float | None
    delta: float | None
    noise_multiplier: float | None
    steps: int | None  # noised steps in one participation
    sample_rate: float | None
    memory_bytes: int  # arrays of one process at its peak, without interpreter and libraries
    client_level: "ClientLevelForecast | None" = None


@dataclass(frozen=True)
class ClientLevelForecast:
    """What a whole client will have spent, by the server's noise."""

    epsilon: float
    delta: float
    noise_multiplier: float
    rounds: int  # that count against one client
    sample_rate: float  # 1: nothing is gained by the sampling of clients
    noise_norm: float  # expected L2 norm of the noise on a mean update, in clip norms
