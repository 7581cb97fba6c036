"""The error for bytes that cannot be accepted, and its closed set of reasons. Does not know any format."""

REASONS = {
    "type": "not bytes, bytearray or a contiguous memoryview",
    "length": "too short, or not the length for this codec and layout",
    "trailing": "bytes after the end that the header declares",
    "magic": "not a fedq packet",
    "version": "a format version that this version of fedq does not read",
    "checksum": "bytes changed in transit",
    "reserved": "a reserved field of an accumulator or a mask is not zero",
    "seed": "a seed for a codec that uses none",
    "codec": "a codec id that this version of fedq does not know",
    "kind": "neither weights nor delta, or not the expected kind",
    "options": "codec options out of range",
    "layout": "made for another layout",
    "round": "made for another round",
    "base": "a delta against weights that the receiver does not hold",
    "scale": "a block scale that is not finite, negative, or outside the range of the codec",
    "level": "a level outside the range of the codec, or bits after the last one",
    "indices": "indices of the sent values that are out of range, repeated, too few or too many",
    "deflate": "deflated levels that are damaged, truncated, or inflate to another length",
    "nonfinite": "NaN or infinity among the values",
    "weight": "an aggregation weight that is not a finite number from 2^-20 to 2^20",
    "overflow": "a value or a sum too large for the fixed-point accumulator",
}


class MalformedUpdate(ValueError):  # noqa: N818  a public name that says what was received
    """Bytes, or an aggregation weight, that must not be aggregated; `reason` is a key of REASONS.

    >>> from fedq.codec import Layout, MalformedUpdate, decode
    >>> try:
    ...     decode(b"not a packet", Layout.flat(3))
    ... except MalformedUpdate as error:
    ...     print(error.reason)
    length
    """

    def __init__(self, reason: str, detail: str) -> None:
        if reason not in REASONS:
            raise KeyError(f"reason={reason!r}: must be one of {', '.join(REASONS)}")
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type["MalformedUpdate"], tuple[str, str]]:
        # The default rebuilds the error from its message alone, which fails when a worker returns the error.
        return type(self), (self.reason, self.detail)
