"""The tensor codec: what crosses a cut, as bytes.

A codec is a name in `CODECS`: a form (how floats become bytes, and back, for many samples at once) and whether zstd
follows. To add one, write the form's three functions and add the line. Integers have no form: they travel as they are.
The codec is part of the operating point, and calibration runs through it, so its loss is in the certificate. Sizes are
checked against the manifest before anything is decompressed.

Codec coarse is that of Cohen, Choi and Bajić, "Lightweight Compression of Intermediate Neural Network Features for
Collaborative Intelligence", arXiv 2105.06002, with another entropy coder: see `partitioner/segments/coarse.py`.
"""

from __future__ import annotations

import base64
import binascii
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import zstandard
from numpy.typing import NDArray

from sluice.wire.errors import PermanentError
from sluice.wire.manifest import Coarse, TensorSpec
from sluice.wire.messages import Tensor

Array = NDArray[np.generic]
Rows = NDArray[np.uint8]
"""(n, bytes of one sample)"""

LEVEL = 3
"""Of zstd: 19 saves 2 % more and takes 15 times as long."""
FLOAT16_MOST = 65504.0


@dataclass(frozen=True, slots=True)
class Form:
    """`pack`: floats (n, *shape) of the spec's dtype to `Rows`; `unpack`: back, up to the form's loss; `nbytes`: of one
    sample."""

    pack: Callable[[Array, TensorSpec], Rows]
    unpack: Callable[[Rows, TensorSpec], Array]
    nbytes: Callable[[TensorSpec], int]


@dataclass(frozen=True, slots=True)
class Codec:
    """A form, and whether zstd follows."""

    form: Form
    zstd: bool

    def form_of(self, spec: TensorSpec) -> Form:
        """The form that a tensor of `spec` takes."""
        return self.form if spec.is_float else RAW

    def dictionary(self, spec: TensorSpec) -> str:
        """Base64 of the zstd dictionary for a tensor of `spec`; empty: none."""
        return spec.coarse.dictionary if spec.coarse and self.form_of(spec) is COARSE else ""


def encode_tensor(array: Array, spec: TensorSpec, codec: str) -> Tensor:
    """One sample's `array` (the spec's dtype and shape, no batch axis) as it travels.

    Raises `PermanentError` for an unknown codec, or one that needs what the spec does not have.
    """
    known = _codec(codec)
    data = known.form_of(spec).pack(array[None], spec).tobytes()
    if known.zstd:
        data = _zstd(known.dictionary(spec)).deflate(data)
    return Tensor(spec.name, spec.dtype, tuple(spec.shape), spec.scale or 0.0, spec.zero_point or 0, codec, data)


def decode_tensor(tensor: Tensor, spec: TensorSpec) -> Array:
    """The array (the spec's dtype and shape) that `tensor` carries; it may be read-only.

    Raises `PermanentError` when it is not exactly what the manifest's `spec` says, whatever it declares itself.
    """
    if tensor.dtype != spec.dtype or tensor.shape != tuple(spec.shape):
        raise PermanentError(
            f"tensor {spec.name!r} is {tensor.dtype}{list(tensor.shape)}, the manifest says "
            f"{spec.dtype}{list(spec.shape)}"
        )
    codec = _codec(tensor.codec)
    form, data = codec.form_of(spec), tensor.data
    wanted = form.nbytes(spec)
    if codec.zstd:
        data = _zstd(codec.dictionary(spec)).inflate(data, wanted)
    if len(data) != wanted:
        raise PermanentError(f"tensor {spec.name!r} has {len(data)} bytes, not {wanted}")
    array: Array = form.unpack(np.frombuffer(data, np.uint8)[None], spec)[0]
    return array


def round_trip(arrays: Array, spec: TensorSpec, codec: str) -> Array:
    """A batch (n, *shape) as the other side would see it; used to calibrate with the codec's loss."""
    form = _codec(codec).form_of(spec)
    return form.unpack(form.pack(arrays, spec), spec)


def payload_sizes(arrays: Array, spec: TensorSpec, codec: str) -> NDArray[np.int64]:
    """Bytes (n,) that each sample of a batch (n, *shape) takes as `Tensor.data`."""
    known = _codec(codec)
    if not known.zstd:
        return np.full(len(arrays), packed_bytes(spec, codec), np.int64)
    deflate = _zstd(known.dictionary(spec)).deflate
    return np.array([len(deflate(row)) for row in packed(arrays, spec, codec)], np.int64)


def packed(arrays: Array, spec: TensorSpec, codec: str) -> list[bytes]:
    """What each sample of a batch (n, *shape) is before zstd; a dictionary is trained on it."""
    return [row.tobytes() for row in _codec(codec).form_of(spec).pack(arrays, spec)]


def packed_bytes(spec: TensorSpec, codec: str) -> int:
    """Bytes of one sample before zstd."""
    return _codec(codec).form_of(spec).nbytes(spec)


def _codec(name: str) -> Codec:
    codec = CODECS.get(name)
    if codec is None:
        raise PermanentError(f"codec {name[:40]!r} is unknown; known: {', '.join(CODECS)}")
    return codec


def _bytes_of(array: Array, dtype: Any) -> Rows:
    """Rows of the bytes of `array` (n, *shape) as `dtype`."""
    whole = np.ascontiguousarray(array, dtype=dtype)
    return whole.reshape(len(array), math.prod(array.shape[1:])).view(np.uint8)


def _raw(arrays: Array, spec: TensorSpec) -> Rows:
    return _bytes_of(arrays, spec.wire_dtype)


def _unraw(rows: Rows, spec: TensorSpec) -> Array:
    return rows.view(spec.wire_dtype).reshape(-1, *spec.shape)


def _float16(arrays: Array, spec: TensorSpec) -> Rows:
    """Half precision, clipped to its range."""
    del spec
    return _bytes_of(np.clip(arrays.astype(np.float32, copy=False), -FLOAT16_MOST, FLOAT16_MOST), "<f2")


def _unfloat16(rows: Rows, spec: TensorSpec) -> Array:
    return rows.view("<f2").astype(spec.wire_dtype).reshape(-1, *spec.shape)


def _int8(arrays: Array, spec: TensorSpec) -> Rows:
    """Affine quantisation to int8 with the range that calibration saw; NaN becomes the least value."""
    scale, zero = _affine(spec)
    levels = np.rint(arrays.astype(np.float32, copy=False) / np.float32(scale))
    return _bytes_of(np.fmin(np.fmax(levels, -128 - zero), 127 - zero) + np.float32(zero), np.int8)


def _unint8(rows: Rows, spec: TensorSpec) -> Array:
    scale, zero = _affine(spec)
    levels = rows.view(np.int8).astype(np.float32)
    return (
        ((levels - np.float32(zero)) * np.float32(scale)).astype(spec.wire_dtype, copy=False).reshape(-1, *spec.shape)
    )


def _affine(spec: TensorSpec) -> tuple[float, int]:
    if not spec.scale:
        raise PermanentError(f"tensor {spec.name!r} has no scale in the manifest: codec int8 needs one")
    return spec.scale, spec.zero_point or 0


def _coarse(arrays: Array, spec: TensorSpec) -> Rows:
    """Clipped, rounded to one of few levels, several of them in a byte; NaN becomes the least value."""
    how = coarse_of(spec)
    n, most = len(arrays), how.levels - 1
    low = np.float32(how.low)
    digits = np.fmin(np.fmax(arrays.astype(np.float32, copy=False), low), np.float32(how.high))
    digits -= low
    digits *= np.float32(most / (how.high - how.low))
    np.rint(digits, out=digits)
    np.minimum(digits, most, out=digits)  # a range of a few ulp may round up
    if how.channels_first:
        digits = digits.reshape(n, _positions(spec), spec.shape[-1]).transpose(0, 2, 1)
    count = _coarse_bytes(spec)
    if spec.size % how.per_byte:
        whole = np.zeros((n, count * how.per_byte), np.float32)
        whole[:, : spec.size] = digits.reshape(n, spec.size)
        digits = whole
    packed: Rows = (digits.reshape(n, count, how.per_byte) @ _weights(how.levels, how.per_byte)).astype(np.uint8)
    return packed


def _uncoarse(rows: Rows, spec: TensorSpec) -> Array:
    how = coarse_of(spec)
    n, left = len(rows), spec.size % how.per_byte or how.per_byte
    most = how.levels**how.per_byte
    if (most < 256 and rows.max(initial=0) >= most) or rows[:, -1].max(initial=0) >= how.levels**left:
        raise PermanentError(f"tensor {spec.name!r} holds a level beyond the {how.levels} of the manifest")
    values = _values(how.low, how.high, how.levels, how.values, how.per_byte)[rows].reshape(
        n, rows.shape[1] * how.per_byte
    )[:, : spec.size]
    if how.channels_first:
        values = np.ascontiguousarray(values.reshape(n, spec.shape[-1], _positions(spec)).transpose(0, 2, 1))
    return values.astype(spec.wire_dtype, copy=False).reshape(n, *spec.shape)


def coarse_of(spec: TensorSpec) -> Coarse:
    """How codec coarse writes a tensor of `spec`; `PermanentError` when the manifest does not say."""
    if spec.coarse is None:
        raise PermanentError(f"tensor {spec.name!r} has no levels in the manifest: codec coarse needs them")
    if spec.coarse.channels_first and not spec.shape:
        raise PermanentError(f"tensor {spec.name!r} has no channels that could come first")
    return spec.coarse


def _positions(spec: TensorSpec) -> int:
    """Elements of one channel (the last axis)."""
    return spec.size // spec.shape[-1]


def _coarse_bytes(spec: TensorSpec) -> int:
    return -(-spec.size // coarse_of(spec).per_byte)


@lru_cache(maxsize=64)
def _weights(levels: int, per_byte: int) -> NDArray[np.float32]:
    """What a digit counts at each place of a byte, the first least."""
    return np.power(float(levels), np.arange(per_byte)).astype(np.float32)


@lru_cache(maxsize=64)
def _values(low: float, high: float, levels: int, values: tuple[float, ...], per_byte: int) -> NDArray[np.float32]:
    """The values (256, per_byte) that each byte stands for."""
    known = np.array(values or np.linspace(low, high, levels), np.float32)
    taken: NDArray[np.float32] = known[np.arange(256)[:, None] // levels ** np.arange(per_byte) % levels]
    return taken


class _Zstd:
    """A compressor and a decompressor with one dictionary; for one thread alone."""

    def __init__(self, dictionary: str) -> None:
        known = None
        if dictionary:
            try:
                known = zstandard.ZstdCompressionDict(base64.b64decode(dictionary, validate=True))
                known.precompute_compress(level=LEVEL)
            except (binascii.Error, ValueError, zstandard.ZstdError) as error:
                raise PermanentError(f"the manifest's zstd dictionary cannot be used: {error}") from error
        self._compressor = zstandard.ZstdCompressor(
            level=LEVEL, dict_data=known, write_checksum=False, write_dict_id=False
        )
        self._decompressor = zstandard.ZstdDecompressor(dict_data=known)

    def deflate(self, data: bytes) -> bytes:
        """One frame."""
        return self._compressor.compress(data)

    def inflate(self, data: bytes, size: int) -> bytes:
        """Decompress one whole frame to exactly `size` bytes; one that declares another size is refused unopened."""
        try:
            declared = zstandard.frame_content_size(data)
            if declared != size:
                raise PermanentError(f"zstd frame declares {declared} bytes where {size} are expected")
            inflated: bytes = self._decompressor.decompress(data, max_output_size=size, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise PermanentError(f"broken zstd frame: {error}") from error
        return inflated


def _zstd(dictionary: str) -> _Zstd:
    return _zstd_of(dictionary, threading.get_ident())


@lru_cache(maxsize=64)
def _zstd_of(dictionary: str, _thread: int) -> _Zstd:
    return _Zstd(dictionary)


RAW = Form(_raw, _unraw, lambda spec: spec.nbytes)
FLOAT16 = Form(_float16, _unfloat16, lambda spec: 2 * spec.size)
INT8 = Form(_int8, _unint8, lambda spec: spec.size)
COARSE = Form(_coarse, _uncoarse, _coarse_bytes)

CODECS: dict[str, Codec] = {
    "raw": Codec(RAW, zstd=False),
    "zstd": Codec(RAW, zstd=True),
    "float16": Codec(FLOAT16, zstd=False),
    "float16-zstd": Codec(FLOAT16, zstd=True),
    "int8": Codec(INT8, zstd=False),
    "int8-zstd": Codec(INT8, zstd=True),
    "coarse": Codec(COARSE, zstd=True),
}
