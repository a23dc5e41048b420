"""The sizes of the AV1 frames in an AVIF file, which decoding costs, whatever size the file states for the image.

libavif scales the frames to the stated size, so that a file of 2 kB and 64 x 64 pixels may take 3 GB.
"""

from collections.abc import Iterator

from gfl.data.image_containers import avif_items

SEQUENCE_HEADER = 1  # type of an OBU, a unit of the AV1 bitstream


def coded_sizes(data: bytes) -> Iterator[tuple[int, int]]:
    """(width, height) of the largest frame that each sequence in an AVIF file may have, for all its images.

    Raises `IndexError` for a file that ends early.
    """
    for item in avif_items(data):
        for kind, unit in _units(item):
            if kind == SEQUENCE_HEADER:
                yield _frame_size(_Bits(unit[:128]))


def _units(item: bytes) -> Iterator[tuple[int, bytes]]:
    position = 0
    while position < len(item):
        head, position = item[position], position + 1
        position += head >> 2 & 1  # an extension
        size = len(item) - position
        if head >> 1 & 1:
            size, position = _leb128(item, position)
        yield head >> 3 & 15, item[position : position + size]
        position += size


def _leb128(data: bytes, position: int) -> tuple[int, int]:
    """A number of seven bits per byte, and the position after it."""
    value = 0
    for count in range(8):
        byte = data[position + count]
        value |= (byte & 127) << 7 * count
        if byte < 128:
            break
    return value, position + count + 1


class _Bits:
    """Numbers of any length from bytes."""

    def __init__(self, data: bytes) -> None:
        self.value, self.left = int.from_bytes(data, "big"), 8 * len(data)

    def take(self, count: int) -> int:
        if count > self.left:
            raise IndexError(count)
        self.left -= count
        return self.value >> self.left & (1 << count) - 1


def _frame_size(bits: _Bits) -> tuple[int, int]:
    """The largest width and height of a sequence header, by section 5.5.1 of the AV1 specification."""
    bits.take(4)  # profile, still picture
    if bits.take(1):  # a reduced header: its level
        bits.take(5)
    else:
        _skip_operating_points(bits)
    width_bits, height_bits = bits.take(4) + 1, bits.take(4) + 1
    return bits.take(width_bits) + 1, bits.take(height_bits) + 1


def _skip_operating_points(bits: _Bits) -> None:
    delay_bits = 0
    if bits.take(1):  # timing
        bits.take(64)
        if bits.take(1):  # equal intervals, whose number has as many bits as zeros before it
            zeros = 0
            while not bits.take(1):
                zeros += 1
            bits.take(zeros)
        if bits.take(1):  # a model of the decoder
            delay_bits = bits.take(5) + 1
            bits.take(42)
    has_display_delay = bits.take(1)
    for _ in range(bits.take(5) + 1):
        bits.take(12)
        if bits.take(5) > 7:  # a level that has tiers
            bits.take(1)
        if delay_bits and bits.take(1):
            bits.take(2 * delay_bits + 1)
        if has_display_delay and bits.take(1):
            bits.take(4)
