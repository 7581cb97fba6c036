"""A reader of packets that was written from docs/packet-format.md alone: Python's struct, XXH3, inflate and floats.

One value at a time, and slow. It shares no line with fedq, so where both agree the document says what fedq does.
"""

import struct
import zlib

import xxhash

POSITIVE = {
    5: [0.4527800381183624, 1.5104175806045532],
    4: [
        *(0.12839503586292267, 0.38804829120635986, 0.6567591428756714, 0.9423404335975647),
        *(1.2562311887741089, 1.6180464029312134, 2.069017171859741, 2.7325894832611084),
    ],
}
BITS = {3: 8, 4: 4, 5: 2, 6: 1}
MASK = 2**64 - 1


def read(packet, segments):
    """Values of the averaged segments, given as (name, shape) pairs of float32 tensors without a hint."""
    fields = struct.unpack_from("<4sHBBII16s16sHBBfQQ", packet)
    magic, version, codec, _, _, seed, layout, _, block, rounding, flags, fraction, length, checksum = fields
    assert (magic, version, length) == (b"FEDQ", 2, len(packet) - 72)
    assert checksum == xxhash.xxh3_64_intdigest(packet[:64] + packet[72:])
    assert layout == xxhash.xxh3_128_digest(layout_bytes(segments))
    runs, first = [], 0
    for _, shape in segments:
        size = 1
        for dimension in shape:
            size *= dimension
        runs.append(Run(first, size, codec if size >= 256 else 1, block + 1, rounding, flags, fraction, seed))
        first += size
    num_scales = sum(run.scales() for run in runs)
    scales, body = struct.unpack_from(f"<{num_scales}f", packet, 72), packet[72 + 4 * num_scales :]
    if flags & 4:
        body = zlib.decompress(body, wbits=-15)
    values, scale, level = [], 0, 0
    for run in runs:
        values += run.read(scales[scale : scale + run.scales()], body[level : level + run.level_bytes()])
        scale, level = scale + run.scales(), level + run.level_bytes()
    assert level == len(body)
    return values


def layout_bytes(segments):
    def text(value):
        return struct.pack("<I", len(value)) + value

    parts = struct.pack("<I", len(segments))
    for name, shape in segments:
        parts += text(name.encode()) + text(b"float32") + text(b"averaged") + text(b"")
        parts += struct.pack(f"<I{len(shape)}Q", len(shape), *shape) + text(b"")
    return parts


class Run:
    """One segment."""

    def __init__(self, first, size, codec, block, rounding, flags, fraction, seed):
        self.first, self.size, self.codec, self.block = first, size, codec, block
        self.lloyd, self.rotate, self.seed = rounding == 2, bool(flags & 1), seed
        self.coded = -(-size // 128) * 128 if self.rotate else size
        if codec in (7, 8):
            self.kept = self.coded = min(size, max(1, int(fraction * size + 0.5)))

    def cut(self, n):
        """Lengths of the blocks of n values."""
        lengths = [self.block] * (n // self.block)
        rest = n % self.block
        while rest:
            w = rest
            if self.rotate:
                w = 128
                while 2 * w <= rest:
                    w *= 2
            lengths.append(w)
            rest -= w
        return lengths

    def scales(self):
        return self.size if self.codec == 1 else 0 if self.codec == 2 else len(self.cut(self.coded))

    def level_bytes(self):
        if self.codec in (1, 2):
            return 2 * self.size * (self.codec - 1)
        if self.codec in (7, 8):
            low, high = self.place_bits()
            return self.kept + (-(-low * self.kept // 8) + -(-high // 8) if self.codec == 7 else 0)
        return -(-self.coded * BITS[self.codec] // 8)

    def place_bits(self):
        low = 0
        while 2 ** (low + 1) <= self.size / self.kept:
            low += 1
        return low, self.kept + (self.size - 1) // 2**low

    def read(self, scales, levels):
        if self.codec == 1:
            return list(scales)
        if self.codec == 2:
            return list(struct.unpack(f"<{self.size}e", levels))
        if self.codec in (7, 8):
            kept = scaled([b - 256 * (b > 127) for b in levels[-self.kept :]], scales, self.cut(self.kept))
            values = [0.0] * self.size
            places = self.read_places(levels[: -self.kept]) if self.codec == 7 else self.picked()
            for place, value in zip(places, kept, strict=True):
                values[place] = value
            return values
        bits = BITS[self.codec]
        codes = [get(levels, i, bits) for i in range(self.coded)]
        values = scaled([self.point(code, bits) for code in codes], scales, self.cut(self.coded))
        return self.rotated_back(values)[: self.size] if self.rotate else values

    def point(self, code, bits):
        if bits == 1:
            return 2 * code - 1
        if self.lloyd:
            half = POSITIVE[self.codec]
            return ([-p for p in reversed(half)] + half)[code]
        return code - 2**bits if code >= 2 ** (bits - 1) else code

    def read_places(self, data):
        low, high = self.place_bits()
        split = -(-low * self.kept // 8)
        ones = [i for i in range(high) if get(data[split:], i, 1)]
        lows = [get(data[:split], i, low) if low else 0 for i in range(self.kept)]
        return [(one - i) * 2**low + lows[i] for i, one in enumerate(ones)]

    def picked(self):
        words = [(word(self.seed + 3 * 2**32, self.first + i), i) for i in range(self.size)]
        return sorted(i for _, i in sorted(words)[: self.kept])

    def rotated_back(self, values):
        start = 0
        for w in self.cut(self.coded):
            for t in (1, 0):
                values[start : start + w] = hadamard(values[start : start + w])
                for i in range(start, start + w):
                    index = self.first + i
                    if word(self.seed + (t + 1) * 2**32, index // 32) >> (index % 32) & 1:
                        values[i] = -values[i]
            start += w
        return values


def scaled(points, scales, lengths):
    values, start = [], 0
    for scale, length in zip(scales, lengths, strict=True):
        values += [fl32(point * scale) for point in points[start : start + length]]
        start += length
    return values


def hadamard(v):
    v = [fl32(x * fl32(len(v) ** -0.5)) for x in v]
    h = 1
    while h < len(v):
        for j in range(len(v)):
            if j // h % 2 == 0:
                v[j], v[j + h] = fl32(v[j] + v[j + h]), fl32(v[j] - v[j + h])
        h *= 2
    return v


def get(data, i, bits):
    """The i-th code of `bits` bits, from the least significant bit on."""
    return sum((data[(i * bits + b) // 8] >> ((i * bits + b) % 8) & 1) << b for b in range(bits))


def fl32(x):
    return struct.unpack("<f", struct.pack("<f", x))[0]


def mix(z):
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def hashed(key, j):
    return mix((mix(key) + (j + 1) * 0x9E3779B97F4A7C15) & MASK)


def word(key, i):
    return hashed(key, i // 2) >> (32 * (i % 2)) & 0xFFFFFFFF


def read_mask(packet, segments):
    """For each value of the vector whether it is kept; segments as for `read`."""
    magic, version, reserved, _, length, layout, checksum = struct.unpack_from("<4sHHIQ16sQ", packet)
    assert (magic, version, reserved, length) == (b"FQMK", 1, 0, len(packet) - 44)
    assert checksum == xxhash.xxh3_64_intdigest(packet[:36] + packet[44:])
    assert layout == xxhash.xxh3_128_digest(layout_bytes(segments))
    sizes = [product(shape) for _, shape in segments]
    prunable = [i for i, (_, shape) in enumerate(segments) if len(shape) > 1 and sizes[i] >= 256]
    num_marks = -(-len(prunable) // 8)
    bits = zlib.decompress(packet[44 + num_marks :], wbits=-15)
    mask, at = [], 0
    for i, size in enumerate(sizes):
        if i in prunable and get(packet[44:], prunable.index(i), 1):
            mask += [bool(get(bits, at + j, 1)) for j in range(size)]
            at += size
        else:
            mask += [True] * size
    return mask


def kept_digest(mask, segments):
    """Digest of the layout of what is kept."""
    kept, at = [], 0
    for name, shape in segments:
        count = sum(mask[at : at + product(shape)])
        kept.append((name, shape if count == product(shape) else (count,)))
        at += product(shape)
    bitmap = bytearray(-(-len(mask) // 8))
    for i, bit in enumerate(mask):
        bitmap[i // 8] |= bit << i % 8
    data = struct.pack("<I", len(kept) + 1) + layout_bytes(kept)[4:]
    for text in (b".kept", b"bool", b"frozen", b""):
        data += struct.pack("<I", len(text)) + text
    data += struct.pack("<IQ", 1, len(mask))
    return xxhash.xxh3_128_digest(data + struct.pack("<I", 16) + xxhash.xxh3_128_digest(bytes(bitmap)))


def product(shape):
    size = 1
    for dimension in shape:
        size *= dimension
    return size
