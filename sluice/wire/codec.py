"""The tensor codec: what crosses a cut, as bytes.

A codec is a name in `CODECS` with two functions; to add one, write the two and add the line. The codec is part of the
operating point, and calibration runs through it, so its loss is in the certificate. Sizes are checked against the
manifest before anything is decompressed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import zstandard
from numpy.typing import NDArray

from sluice.wire.errors import PermanentError
from sluice.wire.manifest import TensorSpec
from sluice.wire.messages import Tensor

Array = NDArray[np.generic]


@dataclass(frozen=True, slots=True)
class Codec:
    """`pack`: array of the spec's dtype and shape to bytes; `unpack`: its inverse, up to the codec's loss."""

    pack: Callable[[Array, TensorSpec], bytes]
    unpack: Callable[[bytes, TensorSpec], Array]


def encode_tensor(array: Array, spec: TensorSpec, codec: str) -> Tensor:
    """One sample's `array` (the spec's dtype and shape, no batch axis) as it travels.

    Raises `PermanentError` for an unknown codec.
    """
    data = _codec(codec).pack(array, spec)
    return Tensor(spec.name, spec.dtype, tuple(spec.shape), spec.scale or 0.0, spec.zero_point or 0, codec, data)


def decode_tensor(tensor: Tensor, spec: TensorSpec) -> Array:
    """The array (the spec's dtype and shape) that `tensor` carries.

    Raises `PermanentError` when it is not exactly what the manifest's `spec` says, whatever it declares itself.
    """
    if tensor.dtype != spec.dtype or tensor.shape != tuple(spec.shape):
        raise PermanentError(
            f"tensor {spec.name!r} is {tensor.dtype}{list(tensor.shape)}, the manifest says "
            f"{spec.dtype}{list(spec.shape)}"
        )
    return _codec(tensor.codec).unpack(tensor.data, spec)


def round_trip(arrays: Array, spec: TensorSpec, codec: str) -> Array:
    """A batch (n, *shape) as the other side would see it; used to calibrate with the codec's loss."""
    unpack, pack = _codec(codec).unpack, _codec(codec).pack
    return np.stack([unpack(pack(array, spec), spec) for array in arrays])


def _codec(name: str) -> Codec:
    codec = CODECS.get(name)
    if codec is None:
        raise PermanentError(f"codec {name[:40]!r} is unknown; known: {', '.join(CODECS)}")
    return codec


def _raw(array: Array, spec: TensorSpec) -> bytes:
    return np.ascontiguousarray(array, dtype=spec.wire_dtype).tobytes()


def _unraw(data: bytes, spec: TensorSpec) -> Array:
    if len(data) != spec.nbytes:
        raise PermanentError(f"tensor {spec.name!r} has {len(data)} bytes, not {spec.nbytes}")
    return np.frombuffer(data, dtype=spec.wire_dtype).reshape(spec.shape)


def _int8(array: Array, spec: TensorSpec) -> bytes:
    """Affine quantisation to int8 with the range that calibration saw; integers pass as they are."""
    if not spec.is_float:
        return _raw(array, spec)
    scale, zero = _affine(spec)
    levels = np.rint(array.astype(np.float32) / scale) + zero
    packed: bytes = np.clip(levels, -128, 127).astype(np.int8).tobytes()
    return packed


def _unint8(data: bytes, spec: TensorSpec) -> Array:
    if not spec.is_float:
        return _unraw(data, spec)
    scale, zero = _affine(spec)
    if len(data) != spec.size:
        raise PermanentError(f"tensor {spec.name!r} has {len(data)} int8 values, not {spec.size}")
    levels = np.frombuffer(data, dtype=np.int8).astype(np.float32)
    return ((levels - zero) * np.float32(scale)).astype(spec.wire_dtype).reshape(spec.shape)


def _affine(spec: TensorSpec) -> tuple[float, int]:
    if not spec.scale:
        raise PermanentError(f"tensor {spec.name!r} has no scale in the manifest: codec int8 needs one")
    return spec.scale, spec.zero_point or 0


@cache
def _compressor() -> zstandard.ZstdCompressor:
    return zstandard.ZstdCompressor(level=3, write_checksum=False)


@cache
def _decompressor() -> zstandard.ZstdDecompressor:
    return zstandard.ZstdDecompressor()


def _inflate(data: bytes, size: int) -> bytes:
    """Decompress one whole frame to exactly `size` bytes; one that declares another size is refused unopened."""
    try:
        declared = zstandard.frame_content_size(data)
        if declared != size:
            raise PermanentError(f"zstd frame declares {declared} bytes where {size} are expected")
        inflated: bytes = _decompressor().decompress(data, max_output_size=size, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise PermanentError(f"broken zstd frame: {error}") from error
    return inflated


def _zstd(array: Array, spec: TensorSpec) -> bytes:
    return _compressor().compress(_raw(array, spec))


def _unzstd(data: bytes, spec: TensorSpec) -> Array:
    return _unraw(_inflate(data, spec.nbytes), spec)


def _int8_zstd(array: Array, spec: TensorSpec) -> bytes:
    return _compressor().compress(_int8(array, spec))


def _unint8_zstd(data: bytes, spec: TensorSpec) -> Array:
    return _unint8(_inflate(data, spec.size if spec.is_float else spec.nbytes), spec)


CODECS: dict[str, Codec] = {
    "raw": Codec(_raw, _unraw),
    "zstd": Codec(_zstd, _unzstd),
    "int8": Codec(_int8, _unint8),
    "int8-zstd": Codec(_int8_zstd, _unint8_zstd),
}
