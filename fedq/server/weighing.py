"""How much each client's update counts. Knows numbers and names of clients; not messages or sums."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from fedq.codec.accumulator import LARGEST_WEIGHT


@dataclass(frozen=True)
class Weighing:
    """A client's weight: what the config states for it, or its own number of examples up to a bound, or one.

    What a client says of itself counts only where it is believed (`by_examples`, for simulations), and never beyond
    `most`: a weight is a share of the model.
    """

    by_examples: bool = False
    most: float = LARGEST_WEIGHT
    stated: Mapping[str, float] = field(default_factory=dict)  # client -> examples; empty: none is stated

    def of(self, client: str, claimed: float | None) -> tuple[float, bool]:
        """The weight, and whether it was capped."""
        if not self.by_examples:
            return 1.0, False
        if self.stated:
            return float(self.stated[client]), False
        weight = float(claimed or 1)
        most = min(self.most, LARGEST_WEIGHT)
        return min(weight, most), weight > most
