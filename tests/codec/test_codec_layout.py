"""Layouts: what is in the vector, what is not, and what is refused."""

import struct

import numpy as np
import pytest
import xxhash

from fedq.codec import Layout, MalformedUpdate, Segment
from fedq.codec.layout import Run


@pytest.fixture
def small_model():
    return Layout(
        [
            Segment("conv.weight", (2, 3), "float16"),
            Segment("bn.num_batches", (), "int64", role="local"),
            Segment("embedding", (100, 8), role="frozen", content=bytes(range(16))),
            Segment("conv.bias", (2,)),
            Segment("scale", ()),
        ]
    )


@pytest.fixture
def small_arrays():
    return {
        "conv.weight": np.array([[1, 2, 3], [4, 5, 6]], np.float16),
        "conv.bias": np.array([7, 8], np.float32),
        "scale": np.array(9, np.float64),
    }


def test_only_averaged_segments_are_in_the_vector(small_model):
    assert small_model.size == 9
    assert small_model.offsets == (0, 6, 8)
    assert [segment.name for segment in small_model.averaged] == ["conv.weight", "conv.bias", "scale"]


def test_flatten_puts_the_segments_end_to_end_as_float32(small_model, small_arrays):
    vector = small_model.flatten(small_arrays)
    assert vector.dtype == np.float32
    assert vector.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9]


def test_flatten_passes_over_local_and_frozen_arrays(small_model, small_arrays):
    more = {**small_arrays, "bn.num_batches": np.array(3), "embedding": np.zeros((100, 8))}
    assert small_model.flatten(more).tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9]


def test_flatten_reads_a_transposed_array_in_c_order():
    layout = Layout([Segment("w", (2, 3))])
    transposed = np.array([[1, 4], [2, 5], [3, 6]], np.float32).T
    assert layout.flatten({"w": transposed}).tolist() == [1, 2, 3, 4, 5, 6]


def test_unflatten_gives_each_array_its_shape(small_model):
    arrays = small_model.unflatten(np.arange(1, 10, dtype=np.float32))
    assert arrays["conv.weight"].tolist() == [[1, 2, 3], [4, 5, 6]]
    assert arrays["conv.bias"].tolist() == [7, 8]
    assert arrays["scale"].shape == ()
    assert set(arrays) == {"conv.weight", "conv.bias", "scale"}


def test_unflattened_arrays_do_not_share_memory_with_the_vector(small_model):
    vector = np.zeros(9, np.float32)
    small_model.unflatten(vector)["conv.weight"][:] = 5
    assert not vector.any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"extra": np.zeros(1, np.float32)}, r"'extra': not in this layout"),
        ({"conv.bias": np.zeros((1, 2), np.float32)}, r"'conv.bias' has shape \(1, 2\): .* \(2,\)"),
        ({"conv.bias": np.zeros(1, np.float32)}, r"has shape \(1,\)"),  # numpy would broadcast it
        ({"conv.bias": np.zeros(2, np.int32)}, r"'conv.bias' is int32: must be a numpy float array"),
        ({"conv.bias": [0.0, 0.0]}, r"'conv.bias' is list"),
        ({"conv.bias": np.array(["a", "b"], object)}, r"'conv.bias' is object"),
    ],
)
def test_flatten_refuses_what_does_not_fit(small_model, small_arrays, change, message):
    with pytest.raises(ValueError, match=message):
        small_model.flatten({**small_arrays, **change})


def test_flatten_names_the_missing_array(small_model, small_arrays):
    del small_arrays["scale"]
    with pytest.raises(ValueError, match=r"'scale' are missing"):
        small_model.flatten(small_arrays)


@pytest.mark.parametrize(
    ("vector", "message"),
    [
        (np.zeros(8, np.float32), r"shape \(8,\): this layout needs \(9,\)"),
        (np.zeros((9, 1), np.float32), r"shape \(9, 1\)"),
        (np.zeros(9, np.float64), "vector is float64: must be a numpy float32 array"),
        ([0.0] * 9, "vector is list"),
    ],
)
def test_unflatten_refuses_another_vector(small_model, vector, message):
    with pytest.raises(ValueError, match=message):
        small_model.unflatten(vector)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"shape": (3, -1)}, r"'w': dimension -1: must be 0\.\.2\*\*40"),
        ({"shape": (2**40 + 1,)}, r"dimension 1099511627777: must be 0\.\.2\*\*40"),
        ({"shape": (2**21, 2**20)}, r"at most 2\*\*40 values"),
        ({"shape": (2.0,)}, r"dimension 2\.0: must be an integer"),
        ({"shape": (True,)}, r"dimension True: must be an integer"),
        ({"dtype": "int64"}, r"dtype='int64': averaged segments are one of float32.*use role='local'"),
        ({"dtype": ""}, r"dtype='': must be a dtype's name"),
        ({"role": "averagd"}, r"role='averagd': must be one of averaged, local, frozen"),
        ({"hint": "float16"}, r"hint='float16': must be None or one of float32"),
        ({"content": bytes(15), "role": "frozen"}, r"must be b'' or a digest of 16 bytes"),
        ({"content": bytes(16)}, r"content is for frozen segments"),
        ({"name": 3}, r"the name must be a string"),
    ],
)
def test_segment_refuses_a_bad_field(fields, message):
    with pytest.raises(ValueError, match=message):
        Segment(**{"name": "w", "shape": (3,), **fields})


def test_layout_refuses_a_name_that_stands_twice():
    with pytest.raises(ValueError, match="'w' appears twice"):
        Layout([Segment("w", (1,)), Segment("w", (2,))])


def test_layout_refuses_what_is_no_segment():
    with pytest.raises(ValueError, match="must be a Segment"):
        Layout([("w", (1,))])


def test_layout_refuses_more_values_than_a_packet_may_hold():
    with pytest.raises(ValueError, match=r"layout of 1099511627777 values: at most 2\*\*40"):
        Layout([Segment("a", (2**40,)), Segment("b", ())])


def test_numpy_dimensions_make_the_same_segment():
    assert Segment("w", np.zeros((2, 3)).shape) == Segment("w", (np.int64(2), np.int32(3)))
    assert Segment("w", [2, 3]) == Segment("w", (2, 3))


def test_digest_is_of_the_documented_bytes():
    layout = Layout([Segment("w", (2, 3)), Segment("é", (), "int8", role="frozen", content=b"c" * 16)])

    def text(value: bytes) -> bytes:
        return struct.pack("<I", len(value)) + value

    canonical = struct.pack("<I", 2)
    canonical += (
        text(b"w") + text(b"float32") + text(b"averaged") + text(b"") + struct.pack("<IQQ", 2, 2, 3) + text(b"")
    )
    canonical += (
        text("é".encode()) + text(b"int8") + text(b"frozen") + text(b"") + struct.pack("<I", 0) + text(b"c" * 16)
    )
    assert layout.digest == xxhash.xxh3_128_digest(canonical)


def test_every_field_of_every_segment_changes_the_digest():
    layouts = [
        Layout([Segment("w", (2, 3)), Segment("b", (2,))]),
        Layout([Segment("v", (2, 3)), Segment("b", (2,))]),
        Layout([Segment("w", (3, 2)), Segment("b", (2,))]),
        Layout([Segment("w", (6,)), Segment("b", (2,))]),
        Layout([Segment("w", (2, 3), "float16"), Segment("b", (2,))]),
        Layout([Segment("w", (2, 3), role="local"), Segment("b", (2,))]),
        Layout([Segment("w", (2, 3), role="frozen"), Segment("b", (2,))]),
        Layout([Segment("w", (2, 3), role="frozen", content=b"1" * 16), Segment("b", (2,))]),
        Layout([Segment("w", (2, 3), role="frozen", content=b"2" * 16), Segment("b", (2,))]),
        Layout([Segment("w", (2, 3), hint="float32"), Segment("b", (2,))]),
        Layout([Segment("b", (2,)), Segment("w", (2, 3))]),
        Layout([Segment("w", (2, 3))]),
        Layout([]),
    ]
    assert len({layout.digest for layout in layouts}) == len(layouts)
    assert all(len(layout.digest) == 16 for layout in layouts)


def test_equal_layouts_have_equal_digests():
    assert Layout.flat(7) == Layout((Segment("", (7,)),))
    assert Layout.flat(7).digest == Layout((Segment("", (7,)),)).digest


def test_small_and_hinted_neighbours_are_one_verbatim_run():
    layout = Layout(
        [
            Segment("a", (255,)),
            Segment("empty", (0,)),
            Segment("b", (300,), hint="float32"),
            Segment("c", (256,)),
            Segment("d", (16, 16)),
            Segment("local", (999,), role="local"),
            Segment("e", (1,)),
        ]
    )
    assert layout.runs == (
        Run(0, 555, True),
        Run(555, 811, False),
        Run(811, 1067, False),
        Run(1067, 1068, True),
    )


def test_a_layout_is_read_from_its_bytes():
    segments = [
        Segment("w", (3, 2), "float16"),
        Segment("näme", (), "int64", role="local"),
        Segment("f", (2,), role="frozen", content=bytes(16)),
        Segment("b", (0, 4), hint="float32"),
    ]
    layout = Layout(segments)
    read = Layout.from_bytes(layout.to_bytes())
    assert read == layout
    assert read.digest == layout.digest


@pytest.mark.parametrize("length", range(len(Layout([Segment("w", (3, 2))]).to_bytes())))
def test_every_cut_of_a_layouts_bytes_is_refused(length):
    with pytest.raises(MalformedUpdate, match="layout: "):
        Layout.from_bytes(Layout([Segment("w", (3, 2))]).to_bytes()[:length])


def bytes_of(shape, name=b"w", dtype=b"float32", role=b"averaged", count=1):
    """The bytes of a layout of one segment, written by hand from docs/packet-format.md."""
    texts = b"".join(struct.pack("<I", len(text)) + text for text in (name, dtype, role, b""))
    dimensions = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return struct.pack("<I", count) + texts + dimensions + struct.pack("<I", 0)


@pytest.mark.parametrize(
    "data",
    [
        bytes_of((2,)) + b"\0",
        bytes_of((2,), count=2**32 - 1),
        bytes_of((2,), name=b"\xff"),
        bytes_of((2,), dtype=b"object"),
        bytes_of((2,), role=b"owned"),
        bytes_of((2**40, 2**40)),
        bytes_of((2**40, 2**40, 0)),
        bytes_of((1,) * 65),
        bytes(2**24 + 1),
    ],
)
def test_bytes_of_no_layout_are_refused(data):
    with pytest.raises(MalformedUpdate, match="layout: "):
        Layout.from_bytes(data)


def test_layouts_at_the_limits_are_read():
    assert Layout.from_bytes(bytes_of((1,) * 64)).size == 1
    assert Layout.from_bytes(bytes_of((2**40,))).size == 2**40
    assert Layout.from_bytes(bytes_of((2**39, 0, 2))).size == 0  # 2^40 beside the zero
    with pytest.raises(MalformedUpdate, match="16777212 bytes after the last segment"):
        Layout.from_bytes(bytes(2**24))
    with pytest.raises(MalformedUpdate, match="16777217 bytes: at most 16777216"):
        Layout.from_bytes(bytes(2**24 + 1))


def test_flatten_rounds_a_float64_whatever_traps_the_caller_has_set():
    layout = Layout([Segment("w", (2,))])
    with np.errstate(all="raise"):
        assert layout.flatten({"w": np.array([1e300, 1e-300])}).tolist() == [np.inf, 0]


@pytest.mark.parametrize(
    ("missing", "message"),
    [("abcde", "arrays 'a', 'b', 'c', 'd', 'e' are missing"), ("abcdef", "'a', 'b', 'c', 'd', 'e' and 1 more are")],
)
def test_five_missing_arrays_are_named(missing, message):
    with pytest.raises(ValueError, match=message):
        Layout([Segment(name, (1,)) for name in missing]).flatten({})


def test_a_value_belongs_to_the_segment_around_it():
    layout = Layout([Segment("empty", (0,)), Segment("w", (3,)), Segment("b", (2,)), Segment("end", (0,))])
    assert [layout.segment_at(i).name for i in range(5)] == ["w", "w", "w", "b", "b"]
