"""Models from outside: what is wrong with them is said with its line or its layer."""

import sys
from pathlib import Path

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
    from partitioner.models import from_source

    with pytest.raises(PermanentError, match=reason) as caught:
        from_source(source)
    assert "\n" not in str(caught.value)


def test_source_and_file_give_the_model(tmp_path: Path) -> None:
    from partitioner.models import from_file, from_source, load_model

    model = from_source(GOOD)
    model.save(tmp_path / "m.keras")
    assert from_file(tmp_path / "m.keras").count_params() == model.count_params() == 15
    assert load_model({"file": "m.keras"}, tmp_path).count_params() == 15
    assert load_model({"source": GOOD}, tmp_path).count_params() == 15
    with pytest.raises(PermanentError, match="either 'source'"):
        load_model({}, tmp_path)


def test_files_that_would_run_code_are_refused_by_the_layers_name(tmp_path: Path) -> None:
    from partitioner.models import from_file, from_source

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
    from partitioner.models import from_file, from_source

    with pytest.raises(PermanentError, match=r"none.keras cannot be read: No such file"):
        from_file(tmp_path / "none.keras")
    (tmp_path / "text.keras").write_text("model")
    with pytest.raises(PermanentError, match=r"text.keras is not a .keras file"):
        from_file(tmp_path / "text.keras")
    from_source(GOOD).save(tmp_path / "cut.keras")
    whole = (tmp_path / "cut.keras").read_bytes()
    (tmp_path / "cut.keras").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(PermanentError, match=r"cut.keras is not a .keras file"):
        from_file(tmp_path / "cut.keras")
    assert "keras" in sys.modules
