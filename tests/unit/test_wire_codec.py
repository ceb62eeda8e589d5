"""Every codec gives back what it took, up to its loss; what the manifest does not say is not opened."""

import base64
import threading
import tracemalloc
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from sluice.wire.codec import CODECS, decode_tensor, encode_tensor, packed, packed_bytes, payload_sizes, round_trip
from sluice.wire.errors import PermanentError
from sluice.wire.manifest import Coarse, TensorSpec
from sluice.wire.messages import Tensor
from tests.unit.wire_support import patient

LOSSLESS = ["raw", "zstd"]
HALVED = ["float16", "float16-zstd"]
QUANTISED = ["int8", "int8-zstd"]
DTYPES = ["float32", "float16", "int8", "uint8", "int32", "int64", "bool"]


def spec_of(dtype: str = "float32", *shape: int, scale: float | None = 0.5, zero_point: int | None = 3) -> TensorSpec:
    return TensorSpec.model_validate(
        {
            "name": "h",
            "dtype": dtype,
            "shape": shape,
            "scale": scale,
            "zero_point": zero_point,
            "coarse": {"low": 0, "high": 2, "levels": 3, "per_byte": 5, "channels_first": bool(shape)},
        }
    )


def coarse_spec(*shape: int, **coarse: Any) -> TensorSpec:
    return spec_of("float32", *shape).model_copy(update={"coarse": Coarse.model_validate(coarse)})


def values(spec: TensorSpec) -> Any:
    random = np.random.default_rng(0)
    return random.integers(0, 2, spec.shape).astype(spec.dtype)


def test_these_are_all_codecs() -> None:
    assert {*LOSSLESS, *HALVED, *QUANTISED, "coarse"} == set(CODECS)


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
    assert len(packed(array[None], spec, codec)[0]) == packed_bytes(spec, codec)
    assert payload_sizes(np.stack([array] * 3), spec, codec).tolist() == [len(tensor.data)] * 3
    np.testing.assert_array_equal(round_trip(np.stack([array] * 3), spec, codec)[1], array)
    assert round_trip(array[None][:0], spec, codec).shape == (0, *shape)


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


@patient
@given(arrays_of.arrays(np.float32, 7, elements=st.floats(-60_000, 60_000, width=32)), st.sampled_from(HALVED))
def test_float16_is_half_as_many_bytes_and_nearly_as_exact(array: Any, codec: str) -> None:
    spec = spec_of("float32", 7)
    assert packed_bytes(spec, codec) == 14
    back = decode_tensor(encode_tensor(array, spec, codec), spec)
    assert back.dtype == np.float32
    np.testing.assert_allclose(np.asarray(back, np.float32), array, rtol=2**-11, atol=1e-7)


def test_float16_clips_what_it_cannot_hold() -> None:
    spec = spec_of("float32", 4)
    array = np.array([1e30, -1e30, np.inf, np.nan], np.float32)
    back = decode_tensor(encode_tensor(array, spec, "float16"), spec)
    np.testing.assert_array_equal(back, [65504, -65504, 65504, np.nan])


@st.composite
def coarse_cases(draw: st.DrawFn) -> tuple[TensorSpec, Any]:
    levels = draw(st.integers(2, 16))
    most = max(k for k in range(1, 9) if levels**k <= 256)
    low, width = draw(st.floats(-100, 100)), draw(st.floats(1e-3, 100))
    shape = draw(arrays_of.array_shapes(max_dims=3, max_side=6))
    spec = coarse_spec(
        *shape,
        low=low,
        high=low + width,
        levels=levels,
        per_byte=draw(st.integers(1, most)),
        channels_first=draw(st.booleans()),
    )
    shares = draw(arrays_of.arrays(np.float32, shape, elements=st.floats(-1, 2, width=32)))
    return spec, (low + shares * width).astype(np.float32)


@patient
@given(coarse_cases())
def test_coarse_goes_to_the_nearest_of_its_levels(case: tuple[TensorSpec, Any]) -> None:
    spec, array = case
    assert spec.coarse is not None
    low, high, levels = spec.coarse.low, spec.coarse.high, spec.coarse.levels
    back = np.asarray(decode_tensor(encode_tensor(array, spec, "coarse"), spec), np.float64)
    step = (high - low) / (levels - 1)
    slack = 1e-4 * step + 1e-6 * (abs(low) + abs(high))
    assert np.abs(back - np.clip(array.astype(np.float64), low, high)).max() <= step / 2 + slack
    places = (back - low) / step
    assert np.abs(places - np.rint(places)).max() * step <= slack
    np.testing.assert_array_equal(round_trip(np.stack([array, array]), spec, "coarse")[1], back.astype(np.float32))


def test_coarse_packs_as_the_manifest_says() -> None:
    """The first element is the least digit; what is no number becomes the least level."""
    array = np.array([[0, 1, 2], [2, 9, -9]], np.float32)
    spec = coarse_spec(2, 3, low=0, high=2, levels=3, per_byte=5)
    assert packed(array[None], spec, "coarse") == [bytes([0 + 1 * 3 + 2 * 9 + 2 * 27 + 2 * 81, 0])]
    spec = coarse_spec(2, 3, low=0, high=2, levels=3, per_byte=3, channels_first=True)
    assert packed(array[None], spec, "coarse") == [bytes([0 + 2 * 3 + 1 * 9, 2 + 2 * 3 + 0 * 9])]
    odd = np.array([[np.nan, np.inf, -np.inf], [3e38, -3e38, 1]], np.float32)
    assert round_trip(odd[None], spec, "coarse").tolist() == [[[0, 2, 0], [2, 0, 1]]]


def test_a_level_that_the_manifest_does_not_have_is_refused() -> None:
    spec = coarse_spec(6, low=0, high=2, levels=3, per_byte=5)
    zstd = zstandard.ZstdCompressor()
    for data in (bytes([243, 0]), bytes([0, 3]), bytes([255, 255])):
        with pytest.raises(PermanentError, match="'h' holds a level beyond the 3 of the manifest"):
            decode_tensor(Tensor("h", "float32", (6,), 0.5, 3, "coarse", zstd.compress(data)), spec)
    whole = Tensor("h", "float32", (6,), 0.5, 3, "coarse", zstd.compress(bytes([242, 2])))
    assert decode_tensor(whole, spec).tolist() == [2.0] * 6


def test_a_dictionary_is_used_by_both_ends() -> None:
    random = np.random.default_rng(0)
    shapes = random.integers(0, 3, (5, 400))
    batch = shapes[random.integers(0, 5, 300)].astype(np.float32)
    bare = coarse_spec(400, low=0, high=2, levels=3, per_byte=5)
    trained = zstandard.train_dictionary(512, [*packed(batch, bare, "coarse")])
    text = base64.b64encode(trained.as_bytes()).decode()
    spec = coarse_spec(400, low=0, high=2, levels=3, per_byte=5, dictionary=text)
    assert payload_sizes(batch, spec, "coarse").mean() < payload_sizes(batch, bare, "coarse").mean() / 2
    sent = encode_tensor(batch[0], spec, "coarse")
    np.testing.assert_array_equal(decode_tensor(sent, spec), batch[0])
    with pytest.raises(PermanentError):
        decode_tensor(sent, bare)
    unlike: list[Any] = []
    other = threading.Thread(target=lambda: unlike.append(decode_tensor(sent, spec)))
    other.start()
    other.join()
    np.testing.assert_array_equal(unlike[0], batch[0])


BROKEN_DICTIONARY = base64.b64encode(bytes.fromhex("37a430ec") + b"\1" * 20).decode()


@pytest.mark.parametrize("dictionary", ["!", "AAA", BROKEN_DICTIONARY])
def test_a_dictionary_that_is_none_is_refused(dictionary: str) -> None:
    spec = coarse_spec(4, low=0, high=2, levels=3, dictionary=dictionary)
    with pytest.raises(PermanentError, match="dictionary"):
        encode_tensor(np.ones(4, np.float32), spec, "coarse")


def test_integers_travel_as_they_are_whatever_the_codec_does_to_floats() -> None:
    spec = spec_of("uint8", 28, 28)
    image = np.random.default_rng(0).integers(0, 256, (28, 28)).astype(np.uint8)
    for codec in CODECS:
        sent = encode_tensor(image, spec, codec)
        np.testing.assert_array_equal(decode_tensor(sent, spec), image)
        assert (len(sent.data) == 784) == (codec in ("raw", "float16", "int8"))


def test_a_zstd_frame_is_smaller_where_there_is_something_to_save() -> None:
    spec = spec_of("float32", 256)
    zeros = np.zeros(256, np.float32)
    sizes = {codec: len(encode_tensor(zeros, spec, codec).data) for codec in CODECS}
    assert (sizes["raw"], sizes["float16"], sizes["int8"]) == (1024, 512, 256)
    assert all(sizes[codec] < 50 for codec in ("zstd", "float16-zstd", "int8-zstd", "coarse"))


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


@pytest.mark.parametrize("codec", ["zstd", "float16-zstd", "int8-zstd", "coarse"])
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


frames = st.binary(max_size=64).map(lambda data: zstandard.ZstdCompressor().compress(data))


@patient
@given(st.sampled_from(sorted(CODECS)), st.binary(max_size=64) | frames)
def test_any_bytes_are_an_array_or_refused(codec: str, data: bytes) -> None:
    try:
        array = decode_tensor(tensor(codec, data=data), SPEC)
    except PermanentError as error:
        assert "\n" not in str(error)
    else:
        assert array.dtype == np.float32 and array.shape == (4,)


@patient
@given(coarse_cases(), st.data())
def test_any_bytes_of_a_coarse_tensor_are_an_array_or_refused(
    case: tuple[TensorSpec, Any], data: st.DataObject
) -> None:
    spec, array = case
    assert spec.coarse is not None
    size = packed_bytes(spec, "coarse")
    frame = zstandard.ZstdCompressor().compress(data.draw(st.binary(min_size=size, max_size=size)))
    try:
        back = decode_tensor(Tensor("h", "float32", array.shape, 0.5, 3, "coarse", frame), spec)
    except PermanentError as error:
        assert "holds a level beyond" in str(error)
    else:
        assert back.shape == array.shape and back.min() >= np.float32(spec.coarse.low)


def test_a_codec_that_needs_more_of_the_manifest_says_so() -> None:
    bare = spec_of("float32", 4, scale=None, zero_point=None).model_copy(update={"coarse": None})
    with pytest.raises(PermanentError, match="'h' has no levels in the manifest: codec coarse needs them"):
        encode_tensor(np.ones(4, np.float32), bare, "coarse")
    for codec in QUANTISED:
        with pytest.raises(PermanentError, match="'h' has no scale in the manifest: codec int8 needs one"):
            encode_tensor(np.ones(4, np.float32), bare, codec)
    sent = encode_tensor(np.ones(4, np.float32), bare, "raw")
    assert (sent.scale, sent.zero_point) == (0.0, 0)
    with pytest.raises(PermanentError, match="codec 'jpeg' is unknown"):
        encode_tensor(np.ones(4, np.float32), bare, "jpeg")
