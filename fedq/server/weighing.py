"""How much each client's update counts. Knows numbers and names of clients; not messages or sums."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from fedq.codec.accumulator import LARGEST_WEIGHT


@dataclass(frozen=True)
class Weighing:
    """A client's weight: one, or its number of examples up to `most`: a weight is a share of the model.

    What a client says of itself counts only where nobody else knows: in another app, whose clients are its own.
    """

    by_examples: bool = False
    most: float = LARGEST_WEIGHT
    stated: Mapping[str, float] = field(default_factory=dict)  # client -> examples; empty: as clients say

    def of(self, client: str, claimed: float | None) -> tuple[float, bool]:
        """The weight, and whether it was capped."""
        if not self.by_examples:
            return 1.0, False
        weight = float(self.stated[client] if self.stated else claimed or 1)
        most = min(self.most, LARGEST_WEIGHT)
        return min(weight, most), weight > most
