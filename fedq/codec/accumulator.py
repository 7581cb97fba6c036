"""Sum weighted updates exactly: the order and any partial sums change no bit of the result.

The module depends on vectors and packets; it does not know clients.

Fixed point: an int64 counts steps of 2^-32. One contribution is

    steps = rint(fl64(value * (weight * 2^32)))    weight * 2^32 is exact, each step rounds half to even

The sum of int64 steps is exact, so it is the same in any order and with any partial sums. The mean is
fl32(fl64(fl64(sum) / fl64(total_weight * 2^32))), where the total weight is an exact fraction. The mean
depends only on the set of contributions.

Overflow is impossible: a contribution with |weight * value| >= 2^21 is refused (below this limit the steps stay
within 2^53, and float64 holds every integer up to 2^53). A contribution is also refused if the sum of the largest
|steps| of all contributions would reach 2^63. This bound is an exact integer too: whether a whole set fits does not
depend on the order. If a set does not fit, the order decides which contribution is refused.

Accuracy: the error of a contribution is at most 2^-33 + 2^-53 |weight * value|. One update of weight 1 comes
back exactly where |value| >= 2^-9 (its last bit is then worth at least 2^-32) or where the value is a multiple of
2^-32, and within 2^-33 elsewhere. In general the error of the mean is at most count * 2^-33 / total_weight, plus 2^-51
of the largest |value|, plus one rounding to float32. Weights far below 1 waste the grid; the minimum is 2^-20.
"""

import struct
from fractions import Fraction
from math import isfinite
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from fedq.codec import jit
from fedq.codec.codec import Codec
from fedq.codec.finite import largest_magnitude
from fedq.codec.header import Kind, as_view
from fedq.codec.layout import Layout
from fedq.codec.malformed import MalformedUpdate
from fedq.codec.packet import decode, parts_of
from fedq.codec.pending import PendingUpdates, WeightedUpdate

GRID = 2.0**32  # steps per unit
LEAST_WEIGHT = 2.0**-20
LARGEST_WEIGHT = 2.0**20
LARGEST_VALUE = 2.0**21  # exclusive bound on one |weight * value|
SUM_LIMIT = 2**63  # exclusive bound on a sum, in steps
COUNT_LIMIT = 2**64  # exclusive bound on contributions: the count field is a uint64
MAGIC = b"FQAC"
VERSION = 1
# A weight is a multiple of 2^-72: the minimum 2^-20 has 52 more bits of mantissa.
_WEIGHT_UNIT = 2**72
_WEIGHT_BYTES = 24
# magic, version, reserved, count, layout digest, bound in steps, total weight in units of 2^-72
_FIELDS = struct.Struct(f"<4sHHQ16sQ{_WEIGHT_BYTES}s")
_CHECKSUM = struct.Struct("<Q")
_HEADER_BYTES = _FIELDS.size + _CHECKSUM.size
_CHUNK = 65536  # values per step: the temporaries stay in the cache


class Accumulator:
    """A running weighted sum of packets of one layout. It holds 8 bytes a value for any number of packets.

    >>> from fedq.codec import encode
    >>> layout = Layout.flat(2)
    >>> total = Accumulator(layout)
    >>> total.add(encode(np.array([1, 2], np.float32), "float32", layout=layout), 3)
    >>> total.add(encode(np.array([5, -2], np.float32), "float32", layout=layout), 1)
    >>> total.mean().tolist(), total.count, total.total_weight
    ([2.0, 1.0], 2, Fraction(4, 1))
    """

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self._settled = np.empty(layout.size, np.int64)
        self._settled.fill(0)  # not np.zeros, which gets no huge pages: adding is up to a third faster
        self._pending = PendingUpdates()  # checked and counted contributions that are not yet in the sums
        self._bound = 0
        self._count = 0
        self._total_weight = Fraction(0)

    @property
    def count(self) -> int:
        """Number of contributions, including those of merged accumulators."""
        return self._count

    @property
    def total_weight(self) -> Fraction:
        """Exact sum of the weights."""
        return self._total_weight

    def add(
        self,
        data: bytes | bytearray | memoryview,
        weight: float = 1.0,
        *,
        round: int | None = None,
        base: bytes | None = None,
        kind: Kind | None = None,
        codec: Codec | None = None,
    ) -> None:
        """Decode a packet and add it with `weight` (2^-20..2^20).

        `round`, `base`, `kind` and `codec` are checked as in `decode`. MalformedUpdate for a bad packet or weight; the
        accumulator is then unchanged.
        """
        exact_weight = checked_weight(weight)
        expected: dict[str, Any] = {"round": round, "base": base, "kind": kind, "codec": codec}
        kernels = jit.kernels(self.layout.size)
        if kernels is None:
            self._add(decode(data, self.layout, **expected), exact_weight)
            return
        parts = parts_of(data, self.layout, **expected)
        weighted = WeightedUpdate.of(parts, kernels, factor=exact_weight * GRID)
        self._count_in(weighted.largest, exact_weight)
        self._pending.put(weighted, self._settled, kernels)
        if type(data) is not bytes:  # the caller may change a mutable buffer
            self.settle()

    def add_vector(self, vector: NDArray[np.float32], weight: float = 1.0) -> None:
        """Add a decoded float32 vector of shape (layout.size,), with the checks and the sum of `add`."""
        self._add(self.layout.check(vector), checked_weight(weight))

    def check_vector(self, vector: NDArray[np.float32], weight: float = 1.0) -> None:
        """MalformedUpdate if `add_vector` would refuse this vector and weight. Changes nothing."""
        self._fitting_with(largest_magnitude(self.layout.check(vector)), checked_weight(weight))

    def settle(self) -> None:
        """Add the pending packets to the sums. `mean`, `merge` and `to_bytes` call this themselves."""
        self._pending.settle(self._settled)

    def merge(self, other: "Accumulator") -> None:
        """Add all contributions of another accumulator, bit for bit as if added here. `other` does not change."""
        if other.layout.digest != self.layout.digest:
            raise ValueError("accumulators of two layouts cannot be merged; build both from one Layout")
        bound = self._fitting(other._bound, other._count)
        self._sums[:] += other._sums
        self._bound, self._count = bound, self._count + other._count
        self._total_weight += other._total_weight

    def mean(self) -> NDArray[np.float32]:
        """Sum of weight * value over the sum of weights."""
        if not self._count:
            raise ValueError("mean of no updates: the round has no update to average; skip the round")
        mean = self._sums.astype(np.float64)
        mean /= float(self._total_weight * 2**32)
        with np.errstate(under="ignore"):
            return mean.astype(np.float32)

    def steps(self) -> NDArray[np.int64]:
        """The exact sum of weight * value, int64 in steps of 1 / GRID, shape (layout.size,); a read-only view."""
        steps = self._sums.view()
        steps.flags.writeable = False
        return steps

    def to_bytes(self) -> bytes:
        """The whole state, for a worker that hands over a partial sum; docs/packet-format.md describes the bytes."""
        weight = int(self._total_weight * _WEIGHT_UNIT).to_bytes(_WEIGHT_BYTES, "little")
        fields = _FIELDS.pack(MAGIC, VERSION, 0, self._count, self.layout.digest, self._bound, weight)
        body = self._sums.astype("<i8", copy=False).tobytes()
        return b"".join((fields, _CHECKSUM.pack(_checksum(fields, body)), body))

    @classmethod
    def from_bytes(cls, data: bytes | bytearray | memoryview, layout: Layout) -> "Accumulator":
        """Read the bytes of `to_bytes`; MalformedUpdate for any other bytes.

        >>> one = Accumulator(Layout.flat(1))
        >>> one.add_vector(np.array([0.25], np.float32), 2)
        >>> Accumulator.from_bytes(one.to_bytes(), Layout.flat(1)).mean().tolist()
        [0.25]
        """
        view = as_view(data)
        length = _HEADER_BYTES + 8 * layout.size
        if len(view) != length:
            reason = "length" if len(view) < length else "trailing"
            raise MalformedUpdate(reason, f"{len(view)} bytes: an accumulator of this layout has {length}")
        magic, version, reserved, count, digest, bound, weight = _FIELDS.unpack_from(view)
        if magic != MAGIC:
            raise MalformedUpdate("magic", f"starts with {magic.hex()}: must start with {MAGIC.hex()}")
        if version != VERSION:
            raise MalformedUpdate("version", f"format version {version}: this version of fedq reads {VERSION}")
        body = view[_HEADER_BYTES:]
        if _CHECKSUM.unpack_from(view, _FIELDS.size)[0] != _checksum(view[: _FIELDS.size], body):
            raise MalformedUpdate("checksum", "the bytes do not match their checksum; send them again")
        if reserved:
            raise MalformedUpdate("reserved", f"reserved field {reserved}: must be 0 in version {VERSION}")
        if digest != layout.digest:
            raise MalformedUpdate("layout", f"sums of layout {digest.hex()}: expected {layout.digest.hex()}")
        total = cls(layout)
        total._sums[:] = np.frombuffer(body, "<i8")
        total._bound, total._count = bound, count
        total._total_weight = Fraction(int.from_bytes(weight, "little"), _WEIGHT_UNIT)
        total._check_invariants()
        return total

    def _add(self, vector: NDArray[np.float32], weight: float) -> None:
        self._count_in(largest_magnitude(vector), weight)
        sums, factor = self._sums, weight * GRID
        for start in range(0, vector.size, _CHUNK):
            steps = np.multiply(vector[start : start + _CHUNK], factor, dtype=np.float64)
            sums[start : start + _CHUNK] += np.rint(steps, out=steps).astype(np.int64)

    def _count_in(self, largest: float, weight: float) -> None:
        """Check and count one contribution. All checks come first, so a refused contribution changes nothing."""
        self._bound = self._fitting_with(largest, weight)
        self._count += 1
        self._total_weight += Fraction(weight)

    def _fitting_with(self, largest: float, weight: float) -> int:
        """The new bound after one more contribution with this largest |value|; MalformedUpdate if it does not fit."""
        if not isfinite(largest):
            raise MalformedUpdate("nonfinite", "NaN or infinity among the values; encode never writes them")
        if largest * weight >= LARGEST_VALUE:
            raise MalformedUpdate(
                "overflow", f"weight {weight:g} times value {largest:g}: must be below 2^21; lower weights"
            )
        # Rounding is monotonic, and half to even in both cases: this is exactly the largest |steps|.
        return self._fitting(round(largest * (weight * GRID)), 1)

    @property
    def _sums(self) -> NDArray[np.int64]:
        """The sums, after all pending contributions are added."""
        self._pending.settle(self._settled)
        return self._settled

    def _fitting(self, more: int, contributions: int) -> int:
        """The new bound after `contributions` more contributions of `more` steps in total."""
        bound = self._bound + more
        if bound >= SUM_LIMIT:
            raise MalformedUpdate("overflow", "the sum could reach 2^31; divide all weights by 1000")
        if self._count + contributions >= COUNT_LIMIT:
            raise MalformedUpdate("overflow", f"{self._count} updates already; start a new accumulator")
        return bound

    def _check_invariants(self) -> None:
        """Check what holds for every accumulator, so that received bytes cannot bring in a sum that overflows later."""
        lowest, highest = int(self._sums.min(initial=0)), int(self._sums.max(initial=0))
        if self._bound >= SUM_LIMIT or max(-lowest, highest) > self._bound:
            raise MalformedUpdate("overflow", f"sums from {lowest} to {highest} steps: bound is {self._bound}")
        least, most = Fraction(LEAST_WEIGHT) * self._count, Fraction(LARGEST_WEIGHT) * self._count
        if not least <= self._total_weight <= most:
            raise MalformedUpdate("weight", f"total weight {float(self._total_weight):g} of {self._count} updates")


def checked_weight(weight: Any) -> float:
    number = isinstance(weight, int | float | np.integer | np.floating) and not isinstance(weight, bool)
    if not number or not LEAST_WEIGHT <= weight <= LARGEST_WEIGHT:
        raise MalformedUpdate("weight", f"weight={weight!r}: must be 2^-20..2^20; use counts, not fractions")
    return float(weight)


def _checksum(fields: bytes | memoryview, body: bytes | memoryview) -> int:
    state = xxhash.xxh3_64(fields)
    state.update(body)
    return state.intdigest()
