"""Models from outside: what is wrong with them is said with its line or its layer."""

import sys
from pathlib import Path

import numpy as np
import pytest

from sluice.wire.errors import PermanentError

pytestmark = pytest.mark.tensorflow

GOOD = """
x = keras.Input((4,))
model = keras.Model(x, layers.Dense(3)(x))
"""


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("x = keras.Input((4,)\n", r"line 1: '\(' was never closed"),
        ("a = 1\nb = layers.Dens(3)\n", "line 2: AttributeError: .*Dens"),
        ("def f():\n    raise ValueError('too\\nbad')\n\nf()\n", "line 2: ValueError: too bad"),
        ("a = 1\n", "no variable `model`"),
        ("model = 'dense'\n", "`model` is a str"),
        ("import sys\nsys.exit(3)\n", "line 2: SystemExit: 3"),
        ("x = keras.Input((4,))\nmodel = keras.Model(x, layers.Conv2D(3, 3)(x))\n", "line 2: ValueError"),
        ("import nowhere\n", "line 1: ModuleNotFoundError"),
        ("\0", "line"),
    ],
)
def test_broken_source_is_named_with_its_line(source: str, reason: str) -> None:
    from partitioner.anatomy.models import from_source

    with pytest.raises(PermanentError, match=reason) as caught:
        from_source(source)
    assert "\n" not in str(caught.value)


def test_source_and_file_give_the_model(tmp_path: Path) -> None:
    from partitioner.anatomy.models import from_file, from_source, load_model

    model = from_source(GOOD)
    model.save(tmp_path / "m.keras")
    assert from_file(tmp_path / "m.keras").count_params() == model.count_params() == 15
    assert load_model({"file": "m.keras"}, tmp_path).count_params() == 15
    assert load_model({"source": GOOD}, tmp_path).count_params() == 15
    with pytest.raises(PermanentError, match="either 'source'"):
        load_model({}, tmp_path)


def test_files_that_would_run_code_are_refused_by_the_layers_name(tmp_path: Path) -> None:
    from partitioner.anatomy.models import from_file, from_source

    model = from_source("x = keras.Input((4,))\nmodel = keras.Model(x, layers.Lambda(lambda v: v, name='odd')(x))")
    model.save(tmp_path / "lambda.keras")
    with pytest.raises(PermanentError, match="layer 'odd': a Lambda layer"):
        from_file(tmp_path / "lambda.keras")
    custom = "class Mine(layers.Layer):\n    def call(self, x):\n        return x\n"
    model = from_source(custom + "x = keras.Input((4,))\nmodel = keras.Model(x, Mine(name='own')(x))")
    model.save(tmp_path / "custom.keras")
    with pytest.raises(PermanentError, match="layer 'own' of class Mine"):
        from_file(tmp_path / "custom.keras")


def test_files_that_are_no_models(tmp_path: Path) -> None:
    from partitioner.anatomy.models import from_file, from_source

    with pytest.raises(PermanentError, match=r"none.keras cannot be read: No such file"):
        from_file(tmp_path / "none.keras")
    (tmp_path / "text.keras").write_text("model")
    with pytest.raises(PermanentError, match=r"text.keras is not a whole .keras file"):
        from_file(tmp_path / "text.keras")
    from_source(GOOD).save(tmp_path / "cut.keras")
    whole = (tmp_path / "cut.keras").read_bytes()
    (tmp_path / "cut.keras").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(PermanentError, match=r"cut.keras is not a whole .keras file .*: write it with model.save"):
        from_file(tmp_path / "cut.keras")
    (tmp_path / "hollow.keras").write_bytes(whole.replace(b"model.weights.h5", b"model.weights.h6"))
    with pytest.raises(PermanentError, match=r"^hollow.keras cannot be loaded: [^\n]*$"):
        from_file(tmp_path / "hollow.keras")
    (tmp_path / "bits.keras").write_bytes(flipped(whole))
    with pytest.raises(PermanentError, match=r"^bits.keras [^\n]*$"):
        from_file(tmp_path / "bits.keras")
    (tmp_path / "folder.keras").mkdir()
    with pytest.raises(PermanentError, match=r"folder.keras cannot be read: Is a directory"):
        from_file(tmp_path / "folder.keras")
    assert "keras" in sys.modules


def flipped(content: bytes) -> bytes:
    """`content` with a few bytes in its middle inverted, as a bad disk leaves it."""
    middle = len(content) // 2
    return content[:middle] + bytes(255 - byte for byte in content[middle : middle + 64]) + content[middle + 64 :]


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float16"])
def test_half_precision_becomes_float32_with_the_same_weights(policy: str, tmp_path: Path) -> None:
    import keras

    from partitioner.anatomy.exits import anatomy
    from partitioner.anatomy.models import from_file, from_source, in_float32

    source = f"""
keras.config.set_dtype_policy("{policy}")
x = keras.Input((4, 3), dtype="float32")
h = layers.MultiHeadAttention(2, 3)(layers.Rescaling(0.5)(x), x)
h = layers.Flatten()(layers.BatchNormalization()(keras.ops.cast(h, "float16")))
model = keras.Model(x, layers.Activation("softmax", dtype="float32")(layers.Dense(3)(h)))
"""
    names: dict[str, object] = {"keras": keras, "layers": keras.layers}
    try:
        exec(source, names)
        half = names["model"]
        with pytest.raises(PermanentError, match=r"computes in b?float16: TFLite has no such"):
            anatomy(half)
        single = from_source(source)
    finally:
        keras.config.set_dtype_policy("float32")
    half.save(tmp_path / "half.keras")  # type: ignore[attr-defined]
    x = np.random.default_rng(0).normal(size=(2, 4, 3)).astype(np.float32)
    loaded = from_file(tmp_path / "half.keras")
    np.testing.assert_allclose(loaded(x), half(x), atol=0.02)  # type: ignore[operator]
    for model in (single, loaded):
        dtypes = {tensor.dtype for node in anatomy(model).graph.nodes for tensor in node.call.output_tensors}
        assert dtypes == {"float32"}
        assert in_float32(model) is model
