"""Client-level DP at the server: each decoded update is clipped, and each round's sum is noised.

Depends on the mechanism and the codec; does not know messages or the model.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from fedq.algorithms import UPDATE
from fedq.codec import Accumulator, Codec, decode
from fedq.codec.accumulator import GRID
from fedq.privacy import ClientLevelMechanism, ClientLevelPlan, clipped
from fedq.server.aggregation import Limits
from fedq.server.round_aggregate import RoundAggregate


class ClientLevelSum:
    """In the place of the weighted mean. All clients count the same, and losses and metrics are dropped.

    A round's step is noised whatever came back. Until `protect` gives it a mechanism nothing is summed.
    """

    keeps_metrics = False  # no noise covers them: they end at the server

    def __init__(self, codec: Codec, plan: ClientLevelPlan) -> None:
        self._codec, self.plan = codec, plan
        self._mechanism: ClientLevelMechanism | None = None

    def protect(self, mechanism: ClientLevelMechanism) -> None:
        """Set what clips and noises the sums of this run; ValueError unless it is of this plan."""
        if mechanism.plan != self.plan:
            raise ValueError(f"a mechanism for {mechanism.plan}, the strategy is for {self.plan}")
        self._mechanism = mechanism

    def limits(self) -> dict[str, float]:
        """The clip norm of the next round."""
        return {} if self._mechanism is None else {UPDATE: self._mechanism.clip_norm}

    def weight_of(self, client: str, num_examples: float | None) -> tuple[float, bool]:
        """1, whatever the client says of itself."""
        return 1.0, False

    def add(
        self,
        total: RoundAggregate,
        client: str,
        packets: Mapping[str, bytes],
        weight: float,
        *,
        round: int,
        base: bytes,
        limits: Limits,
    ) -> None:
        """Add one client's update, clipped as it is after decoding."""
        if UPDATE not in limits:
            raise RuntimeError("no clip norm for this round: nothing is added without one; call protect() first")
        vector = decode(packets[UPDATE], total.layout, round=round, base=base, kind="delta", codec=self._codec)
        short, within = clipped(vector, limits[UPDATE])
        total.sums.setdefault(UPDATE, Accumulator(total.layout)).add_vector(short)
        total.note_clip(limits[UPDATE], within)

    def settle(self, total: RoundAggregate, limits: Limits) -> None:
        """Nothing waits for the end of a round."""

    def mean(self, total: RoundAggregate, name: str, *, round: int) -> NDArray[np.float32]:
        """The clipped, noised sum over the public size of a cohort."""
        if self._mechanism is None:
            raise RuntimeError("client-level DP has no mechanism yet: call protect() before the rounds")
        sums = total.sums.get(name, Accumulator(total.layout))
        return self._mechanism.release(
            sums.steps(),
            grid=GRID,
            round=round,
            clip_norm=total.clip_norm,
            counted=sums.count,
            within=total.within,
        )

    def note(self, total: RoundAggregate) -> None:
        """The mechanism notes its rounds itself."""
