"""Every codec gives back what it took, up to its loss; what the manifest does not say is not opened."""

import tracemalloc
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from sluice.wire.codec import CODECS, decode_tensor, encode_tensor, round_trip
from sluice.wire.errors import PermanentError
from sluice.wire.manifest import TensorSpec
from sluice.wire.messages import Tensor
from tests.unit.wire_support import patient

LOSSLESS = ["raw", "zstd"]
QUANTISED = ["int8", "int8-zstd"]
DTYPES = ["float32", "float16", "int8", "uint8", "int32", "int64", "bool"]


def spec_of(dtype: str = "float32", *shape: int, scale: float | None = 0.5, zero_point: int | None = 3) -> TensorSpec:
    return TensorSpec.model_validate(
        {"name": "h", "dtype": dtype, "shape": shape, "scale": scale, "zero_point": zero_point}
    )


def values(spec: TensorSpec) -> Any:
    random = np.random.default_rng(0)
    return random.integers(0, 2, spec.shape).astype(spec.dtype)


def test_these_are_all_codecs() -> None:
    assert set(LOSSLESS + QUANTISED) == set(CODECS)


@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 3, 4)])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("codec", CODECS)
def test_a_round_trip(codec: str, dtype: str, shape: tuple[int, ...]) -> None:
    spec = spec_of(dtype, *shape)
    array = values(spec)
    tensor = encode_tensor(array, spec, codec)
    assert (tensor.name, tensor.dtype, tensor.shape, tensor.codec) == ("h", dtype, shape, codec)
    assert (tensor.scale, tensor.zero_point) == (0.5, 3)
    back = decode_tensor(tensor, spec)
    assert back.dtype == array.dtype and back.shape == array.shape
    np.testing.assert_array_equal(back, array)  # 0 and 1 are levels of the scale too


@patient
@given(st.sampled_from(LOSSLESS), st.data())
def test_a_lossless_codec_keeps_every_bit(codec: str, data: st.DataObject) -> None:
    spec = spec_of(data.draw(st.sampled_from(DTYPES[:-1])), 3, 2)
    array = data.draw(arrays_of.arrays(spec.dtype, spec.shape))
    assert decode_tensor(encode_tensor(array, spec, codec), spec).tobytes() == array.tobytes()


@patient
@given(
    st.sampled_from(QUANTISED),
    st.floats(1e-6, 1e6),
    st.integers(-128, 127),
    st.lists(st.floats(-1, 1), min_size=1, max_size=20),
)
def test_int8_loses_half_a_step_at_most_and_clips_beyond_its_range(
    codec: str, scale: float, zero_point: int, shares: list[float]
) -> None:
    spec = spec_of("float32", len(shares), scale=scale, zero_point=zero_point)
    low, high = (-128 - zero_point) * scale, (127 - zero_point) * scale
    array = (np.array(shares) * 200 * scale).astype(np.float32)
    back = np.asarray(decode_tensor(encode_tensor(array, spec, codec), spec), np.float64)
    within = np.clip(array.astype(np.float64), low, high)
    assert np.abs(back - within).max() <= scale * 0.501


def test_a_zstd_frame_is_smaller_where_there_is_something_to_save() -> None:
    spec = spec_of("float32", 256)
    zeros = np.zeros(256, np.float32)
    sizes = {codec: len(encode_tensor(zeros, spec, codec).data) for codec in CODECS}
    assert sizes["raw"] == 1024 and sizes["int8"] == 256 and sizes["zstd"] < 50 and sizes["int8-zstd"] < 50


def test_a_batch_is_seen_as_the_other_side_would_see_it() -> None:
    spec = spec_of("float32", 2)
    batch = np.array([[0.2, 0.3], [1.0, 70.0]], np.float32)
    assert round_trip(batch, spec, "int8").tolist() == [[0.0, 0.5], [1.0, 62.0]]
    assert round_trip(batch, spec, "raw").tolist() == batch.tolist()


SPEC = spec_of("float32", 4)


def tensor(codec: str = "raw", **changes: Any) -> Tensor:
    return replace(encode_tensor(np.ones(4, np.float32), SPEC, codec), **changes)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"dtype": "int32"}, r"is int32\[4\], the manifest says float32\[4\]"),
        ({"dtype": "object"}, "the manifest says"),
        ({"shape": (2, 2)}, r"is float32\[2, 2\]"),
        ({"shape": (5,)}, "the manifest says"),
        ({"shape": ()}, "the manifest says"),
        ({"codec": "jpeg"}, "codec 'jpeg' is unknown; known: raw, "),
        ({"codec": "x" * 1000}, "is unknown"),
    ],
)
def test_what_the_manifest_does_not_say_is_refused(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(PermanentError, match=reason) as refused:
        decode_tensor(tensor(**changes), SPEC)
    assert len(str(refused.value)) < 200


@pytest.mark.parametrize("codec", CODECS)
def test_an_unlike_number_of_bytes_is_refused(codec: str) -> None:
    whole = tensor(codec).data
    for size in range(len(whole)):
        with pytest.raises(PermanentError):
            decode_tensor(tensor(codec, data=whole[:size]), SPEC)
    for rest in (b"\0", b"rest", whole):
        with pytest.raises(PermanentError):
            decode_tensor(tensor(codec, data=whole + rest), SPEC)


@pytest.mark.parametrize("codec", ["zstd", "int8-zstd"])
def test_a_frame_that_declares_another_size_is_not_opened(codec: str) -> None:
    bomb = zstandard.ZstdCompressor().compress(bytes(50_000_000))
    tracemalloc.start()
    try:
        with pytest.raises(PermanentError, match="zstd frame declares 50000000 bytes where"):
            decode_tensor(tensor(codec, data=bomb), SPEC)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()
    silent = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(16))
    with pytest.raises(PermanentError, match="zstd frame declares -1 bytes"):
        decode_tensor(tensor(codec, data=silent), SPEC)


@patient
@given(st.sampled_from(sorted(CODECS)), st.binary(max_size=64))
def test_no_bytes_raise_anything_else(codec: str, data: bytes) -> None:
    try:
        decode_tensor(tensor(codec, data=data), SPEC)
    except PermanentError as error:
        assert "\n" not in str(error)


def test_int8_needs_a_scale() -> None:
    bare = spec_of("float32", 4, scale=None, zero_point=None)
    for codec in QUANTISED:
        with pytest.raises(PermanentError, match="'h' has no scale in the manifest: codec int8 needs one"):
            encode_tensor(np.ones(4, np.float32), bare, codec)
    sent = encode_tensor(np.ones(4, np.float32), bare, "raw")
    assert (sent.scale, sent.zero_point) == (0.0, 0)
    with pytest.raises(PermanentError, match="codec 'jpeg' is unknown"):
        encode_tensor(np.ones(4, np.float32), bare, "jpeg")
