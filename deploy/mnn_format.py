"""The part of an MNN file that says which tensors are 8-bit numbers, read and rewritten.

A file is one flatbuffer (`MNN.fbs` in MNN's source): tables whose fields a vtable finds, and forward offsets. What is
there stays where it is; a new list of tensors goes to the end.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

# Numbers of fields in their tables.
_DESCRIPTIONS, _TENSOR_NAMES = 1, 7  # of `Net`
_INDEX, _QUANT = 1, 4  # of `TensorDescribe`
_SCALE, _ZERO, _LEAST, _GREATEST, _TYPE = range(5)  # of `TensorQuantInfo`
_INT8 = 6  # of `DataType`
# Vtables of tables with just those fields: own size, size of the table, place of each field; padded to 4 bytes.
_DESCRIPTION_VTABLE = struct.pack("<7H2x", 14, 12, 0, 4, 0, 0, 8)
_QUANT_VTABLE = struct.pack("<7H2x", 14, 24, 4, 8, 12, 16, 20)


@dataclass(frozen=True)
class EightBits:
    """Real value = (number - zero) * scale, for numbers from `least` to `greatest`."""

    scale: float
    zero: float
    least: float = -128.0
    greatest: float = 127.0


def read_described(model: bytes) -> dict[str, EightBits]:
    """Name of each tensor that is 8-bit numbers to what they stand for."""
    names = list(_names(model))
    return {names[index]: bits for index, bits in _described(model).items()}


def describe(model: bytes, tensors: Mapping[str, EightBits]) -> bytes:
    """The model with more tensors described; one that is described already, or is none of the model's, changes nothing.

    Args:
        model: an MNN file with some tensors described.
        tensors: name to what its numbers stand for.
    """
    numbers = {name: index for index, name in enumerate(_names(model))}
    wanted = {numbers[name]: bits for name, bits in tensors.items() if name in numbers}
    place = _field(model, _root(model), _DESCRIPTIONS)
    if not place:
        return model
    padded = model + bytes(-len(model) % 4)
    block, start = _block(dict(sorted((wanted | _described(model)).items())))
    offset = struct.pack("<I", len(padded) + start - place)
    return padded[:place] + offset + padded[place + 4 :] + block


def _block(described: Mapping[int, EightBits]) -> tuple[bytes, int]:
    """Vtables, the vector and its tables, and where in it the vector begins."""
    start = len(_DESCRIPTION_VTABLE) + len(_QUANT_VTABLE)
    first = start + 4 + 4 * len(described)
    vector, tables = [struct.pack("<I", len(described))], []
    for number, (index, bits) in enumerate(described.items()):
        at = first + number * 36  # a table of 12 bytes and one of 24
        vector.append(struct.pack("<I", at - (start + 4 + 4 * number)))
        tables.append(struct.pack("<iiI", at, index, 4))
        values = (bits.scale, bits.zero, bits.least, bits.greatest)
        tables.append(struct.pack("<iffffi", at + 12 - len(_DESCRIPTION_VTABLE), *values, _INT8))
    return b"".join((_DESCRIPTION_VTABLE, _QUANT_VTABLE, *vector, *tables)), start


def _described(model: bytes) -> dict[int, EightBits]:
    """Number of each tensor with a `quantInfo`."""
    found = {}
    for table in _tables(model, _field(model, _root(model), _DESCRIPTIONS)):
        place = _field(model, table, _QUANT)
        if place:
            quant = place + _unsigned(model, place)
            scale, zero, least, greatest = (
                _number(model, quant, slot, default)
                for slot, default in ((_SCALE, 0.0), (_ZERO, 0.0), (_LEAST, -128.0), (_GREATEST, 127.0))
            )
            index = _field(model, table, _INDEX)
            number = struct.unpack_from("<i", model, index)[0] if index else 0
            found[number] = EightBits(scale, zero, least, greatest)
    return found


def _names(model: bytes) -> Iterator[str]:
    for at in _tables(model, _field(model, _root(model), _TENSOR_NAMES)):
        yield model[at + 4 : at + 4 + _unsigned(model, at)].decode()


def _tables(model: bytes, place: int) -> Iterator[int]:
    """Where each table or string of a vector begins."""
    if place:
        vector = place + _unsigned(model, place)
        for at in range(vector + 4, vector + 4 + 4 * _unsigned(model, vector), 4):
            yield at + _unsigned(model, at)


def _root(model: bytes) -> int:
    return _unsigned(model, 0)


def _field(model: bytes, table: int, slot: int) -> int:
    """Where a field of a table is; 0 where the table has it not."""
    vtable = table - int(struct.unpack_from("<i", model, table)[0])
    place = 4 + 2 * slot
    if place >= struct.unpack_from("<H", model, vtable)[0]:
        return 0
    inside = int(struct.unpack_from("<H", model, vtable + place)[0])
    return table + inside if inside else 0


def _number(model: bytes, table: int, slot: int, default: float) -> float:
    place = _field(model, table, slot)
    return float(struct.unpack_from("<f", model, place)[0]) if place else default


def _unsigned(model: bytes, at: int) -> int:
    return int(struct.unpack_from("<I", model, at)[0])
