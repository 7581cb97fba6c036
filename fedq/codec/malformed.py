"""The one error for bytes that cannot be accepted, and its closed set of reasons. Knows no format."""

REASONS = {
    "type": "not bytes, bytearray or a contiguous memoryview",
    "length": "too short, or a length other than the one this codec and layout give",
    "trailing": "bytes after the end that the header declares",
    "magic": "not a fedq packet",
    "version": "a format version this fedq does not read",
    "checksum": "bytes changed on the way",
    "reserved": "a reserved field of an accumulator or a mask that is not zero",
    "seed": "a seed where the codec draws nothing by it",
    "codec": "a codec id this fedq does not know",
    "kind": "neither weights nor delta, or not the kind that was asked for",
    "options": "codec options out of range",
    "layout": "made for another layout",
    "round": "made for another round",
    "base": "a delta against other weights than the receiver holds",
    "scale": "a block scale that is not finite, negative, or outside the range of the codec",
    "level": "a level outside the range of the codec, or bits after the last one",
    "indices": "places of kept values that are out of range, repeated, too few or too many",
    "deflate": "deflated levels that are damaged, truncated, or inflate to another length",
    "nonfinite": "NaN or infinity among the values",
    "weight": "an aggregation weight that is not a finite number from 2^-20 to 2^20",
    "overflow": "a value or a sum too large for the fixed-point accumulator",
}


class MalformedUpdate(ValueError):  # noqa: N818  the public name says what arrived, as FileNotFoundError does not
    """Bytes, or a weight sent beside them, that must not be aggregated; `reason` is a key of REASONS.

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
        # The default rebuilds from the one joined message, and so fails when a worker hands the error back.
        return type(self), (self.reason, self.detail)
