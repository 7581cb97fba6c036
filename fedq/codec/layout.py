"""The tensors that make up the flat vector, in order. Depends on names, shapes and roles; does not know packets."""

import operator
import struct
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from math import prod
from typing import Any, Literal, get_args

import numpy as np
import xxhash
from numpy.typing import NDArray

from fedq.codec.malformed import MalformedUpdate

Role = Literal["averaged", "local", "frozen"]
AVERAGED_DTYPES = ("float32", "float16", "float64", "bfloat16")
HINTS = ("float32",)
# Norms, biases and learned ranges are small. One outlier in a shared block would round them to zero.
SMALL_SEGMENT = 256
MAX_VALUES = 2**40  # 4 TiB of float32; keeps every length far inside the 64-bit fields of a packet
MAX_BYTES = 2**24  # of an encoded layout: 100 bytes for each of 160,000 tensors
MAX_DIMENSIONS = 64  # numpy's own limit


@dataclass(frozen=True)
class Segment:
    """One tensor of a model.

    An `averaged` tensor is part of the vector, a `local` one stays with its client, a `frozen` one is identified by
    `content` only. `hint="float32"`: sent uncompressed with every codec. `content`: b"", or for a frozen tensor a
    16-byte digest. ValueError for an invalid field.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    role: Role = "averaged"
    hint: str | None = None
    content: bytes = b""

    def __post_init__(self) -> None:
        where = f"segment {self.name!r}"
        if not isinstance(self.name, str):
            raise ValueError(f"{where}: the name must be a string; use the key of the state_dict")
        object.__setattr__(self, "shape", tuple(_dimension(where, size) for size in self.shape))
        if self.size > MAX_VALUES:
            raise ValueError(f"{where}: shape={self.shape}: at most 2**40 values; split the tensor")
        if self.role not in get_args(Role):
            raise ValueError(f"{where}: role={self.role!r}: must be one of {', '.join(get_args(Role))}")
        if not isinstance(self.dtype, str) or not self.dtype:
            raise ValueError(f"{where}: dtype={self.dtype!r}: must be a dtype's name; use e.g. 'float32'")
        if self.role == "averaged" and self.dtype not in AVERAGED_DTYPES:
            raise ValueError(
                f"{where}: dtype={self.dtype!r}: averaged segments are one of {', '.join(AVERAGED_DTYPES)}; "
                "use role='local' for counters and other integers"
            )
        if self.hint is not None and self.hint not in HINTS:
            raise ValueError(f"{where}: hint={self.hint!r}: must be None or one of {', '.join(HINTS)}")
        if not isinstance(self.content, bytes) or len(self.content) not in (0, 16):
            raise ValueError(f"{where}: content={self.content!r}: must be b'' or a digest of 16 bytes")
        if self.content and self.role != "frozen":
            raise ValueError(f"{where}: content is for frozen segments; role={self.role!r} needs content=b''")

    @property
    def size(self) -> int:
        """Number of values; 1 for shape ()."""
        return prod(self.shape)

    @property
    def verbatim(self) -> bool:
        """True if the segment is sent as float32 with every codec."""
        return self.size < SMALL_SEGMENT or self.hint == "float32"


@dataclass(frozen=True)
class Run:
    """A range [start, stop) of the vector that is encoded as one piece."""

    start: int
    stop: int
    verbatim: bool


@dataclass(frozen=True)
class Layout:
    """The ordered segments of a model; the averaged segments, concatenated in C order, form the vector.

    >>> steps = Segment("steps", (), "int64", role="local")
    >>> layout = Layout([Segment("w", (2, 2)), steps, Segment("b", (2,))])
    >>> layout.size, layout.offsets
    (6, (0, 4))
    >>> vector = layout.flatten({"w": np.ones((2, 2), np.float32), "b": np.zeros(2, np.float32)})
    >>> vector.tolist()
    [1.0, 1.0, 1.0, 1.0, 0.0, 0.0]
    >>> layout.unflatten(vector)["b"].tolist()
    [0.0, 0.0]
    """

    segments: tuple[Segment, ...]

    def __init__(self, segments: Iterable[Segment]) -> None:
        object.__setattr__(self, "segments", tuple(segments))
        seen: set[str] = set()
        for segment in self.segments:
            if not isinstance(segment, Segment):
                raise ValueError(f"{segment!r}: must be a Segment; use Segment(name, shape)")
            if segment.name in seen:
                raise ValueError(f"segment {segment.name!r} appears twice: names must be unique; rename one")
            seen.add(segment.name)
        if self.size > MAX_VALUES:
            raise ValueError(f"layout of {self.size} values: at most 2**40; send the model in several packets")

    @classmethod
    def flat(cls, n: int) -> "Layout":
        """One unnamed segment of n values.

        >>> Layout.flat(1000).size
        1000
        """
        return cls((Segment("", (n,)),))

    @cached_property
    def averaged(self) -> tuple[Segment, ...]:
        """The averaged segments, in order."""
        return tuple(segment for segment in self.segments if segment.role == "averaged")

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """The index in the vector at which each segment of `averaged` starts."""
        return tuple(accumulate((segment.size for segment in self.averaged), initial=0))[:-1]

    def slices(self, wanted: Callable[[Segment], bool]) -> list[slice]:
        """The slices of the averaged segments for which `wanted` is true, in order."""
        return [
            slice(start, start + segment.size)
            for segment, start in zip(self.averaged, self.offsets, strict=True)
            if wanted(segment)
        ]

    @cached_property
    def size(self) -> int:
        """Number of values in the vector."""
        return sum(segment.size for segment in self.averaged)

    @cached_property
    def runs(self) -> tuple[Run, ...]:
        """The vector cut at segment borders; adjacent verbatim segments form one run."""
        runs: list[Run] = []
        for segment, start in zip(self.averaged, self.offsets, strict=True):
            stop = start + segment.size
            if segment.verbatim and runs and runs[-1].verbatim:
                runs[-1] = Run(runs[-1].start, stop, True)
            elif segment.size:
                runs.append(Run(start, stop, segment.verbatim))
        return tuple(runs)

    @cached_property
    def digest(self) -> bytes:
        """XXH3-128 of `to_bytes`, 16 bytes."""
        return xxhash.xxh3_128(self.to_bytes()).digest()

    @cached_property
    def memo(self) -> dict[Any, Any]:
        """A cache for packet.py; it takes no part in the comparison of layouts."""
        return {}

    def segment_at(self, index: int) -> Segment:
        """The segment that contains value `index` of the vector."""
        return self.averaged[bisect_right(self.offsets, index) - 1]

    def to_bytes(self) -> bytes:
        """The canonical bytes; docs/packet-format.md describes them."""
        parts = [struct.pack("<I", len(self.segments))]
        for segment in self.segments:
            for text in (segment.name, segment.dtype, segment.role, segment.hint or ""):
                parts.append(_prefixed(text.encode("utf-8")))
            parts.append(struct.pack(f"<I{len(segment.shape)}Q", len(segment.shape), *segment.shape))
            parts.append(_prefixed(segment.content))
        return b"".join(parts)

    @classmethod
    def from_bytes(cls, data: bytes) -> "Layout":
        """Read the bytes of `to_bytes`; MalformedUpdate for any other bytes.

        >>> layout = Layout([Segment("w", (2, 2)), Segment("steps", (), "int64", role="local")])
        >>> Layout.from_bytes(layout.to_bytes()) == layout
        True
        """
        if len(data) > MAX_BYTES:
            raise MalformedUpdate("layout", f"layout of {len(data)} bytes: at most {MAX_BYTES}")
        reader = _Reader(data)
        try:
            layout = cls(reader.segment() for _ in range(reader.number()))
        except (ValueError, struct.error) as error:  # bad text, bad dimension, a check of Segment, or too few bytes
            raise MalformedUpdate("layout", f"not the bytes of a layout ({error})") from error
        if reader.at != len(data):
            raise MalformedUpdate("layout", f"{len(data) - reader.at} bytes after the last segment of a layout")
        return layout

    def flatten(self, arrays: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """Concatenate the averaged arrays (float, by name) into a float32 vector of shape (size,).

        Arrays of local and frozen segments are ignored. ValueError for a missing or unknown array, or a wrong shape.
        """
        known = {segment.name for segment in self.segments}
        if unknown := sorted(str(name) for name in arrays if name not in known):
            raise ValueError(f"arrays {_some(unknown)}: not in this layout; drop them or rebuild the layout")
        if missing := [segment.name for segment in self.averaged if segment.name not in arrays]:
            raise ValueError(f"arrays {_some(missing)} are missing: every averaged segment needs one")
        vector = np.empty(self.size, np.float32)
        for segment, start in zip(self.averaged, self.offsets, strict=True):
            array = arrays[segment.name]
            if not isinstance(array, np.ndarray) or array.dtype.kind != "f":
                found = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
                raise ValueError(f"array {segment.name!r} is {found}: must be a numpy float array; use tensor.numpy()")
            if array.shape != segment.shape:
                raise ValueError(
                    f"array {segment.name!r} has shape {array.shape}: the layout says {segment.shape}; "
                    "rebuild the layout from this model"
                )
            # A float64 beyond float32 becomes inf here, and encode refuses it by its index.
            with np.errstate(over="ignore", under="ignore"):
                vector[start : start + segment.size] = array.reshape(-1)
        return vector

    def unflatten(self, vector: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        """Split a vector into float32 arrays by name. They are copies: training in place must not change the base."""
        checked = self.check(vector)
        return {
            segment.name: checked[start : start + segment.size].reshape(segment.shape).copy()
            for segment, start in zip(self.averaged, self.offsets, strict=True)
        }

    def check(self, vector: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the vector, contiguous; ValueError unless it is float32 of shape (size,)."""
        if not isinstance(vector, np.ndarray) or vector.dtype != np.float32:
            found = vector.dtype if isinstance(vector, np.ndarray) else type(vector).__name__
            raise ValueError(f"vector is {found}: must be a numpy float32 array; use Layout.flatten")
        if vector.shape != (self.size,):
            raise ValueError(f"vector has shape {vector.shape}: this layout needs ({self.size},)")
        return np.ascontiguousarray(vector)


class _Reader:
    """Reads the canonical bytes of a layout from start to end."""

    def __init__(self, data: bytes) -> None:
        self._data, self.at = data, 0

    def number(self) -> int:
        (value,) = struct.unpack_from("<I", self._data, self.at)
        self.at += 4
        return int(value)

    def prefixed(self) -> bytes:
        length = self.number()
        if length > len(self._data) - self.at:
            raise ValueError("the bytes end inside a text field")
        self.at += length
        return self._data[self.at - length : self.at]

    def segment(self) -> Segment:
        name, dtype, role, hint = (self.prefixed().decode("utf-8") for _ in range(4))
        dimensions = self.number()
        if dimensions > MAX_DIMENSIONS:
            raise ValueError(f"segment {name!r} of {dimensions} dimensions: at most {MAX_DIMENSIONS}")
        shape = struct.unpack_from(f"<{dimensions}Q", self._data, self.at)
        self.at += 8 * dimensions
        # A shape with a zero holds no value, but numpy refuses it if the other dimensions are too large.
        if prod(size or 1 for size in shape) > MAX_VALUES:
            raise ValueError(f"segment {name!r}: shape={shape}: at most 2**40 values")
        return Segment(name, shape, dtype, role, hint or None, self.prefixed())  # type: ignore[arg-type]


def _dimension(where: str, size: object) -> int:
    try:
        if isinstance(size, bool):
            raise TypeError
        dimension = operator.index(size)  # type: ignore[arg-type]  # the TypeError is the check
    except TypeError:
        raise ValueError(f"{where}: dimension {size!r}: must be an integer") from None
    if not 0 <= dimension <= MAX_VALUES:
        raise ValueError(f"{where}: dimension {dimension}: must be 0..2**40")
    return dimension


def _prefixed(data: bytes) -> bytes:
    return struct.pack("<I", len(data)) + data


def _some(names: list[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"
