"""TensorFlow without its greetings, which say nothing that a reader of a job's log could use.

Two settings of TensorFlow's own, taken from the environment by its C++ side before any Python could set them; and what
it and the TFLite runtime print while they start or convert is held back, and shown only after an error that nobody
expected.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

from sluice.wire.errors import SluiceError

if TYPE_CHECKING:
    from rich.console import Console


def import_tensorflow() -> None:
    """Import TensorFlow and Keras; call it before any module that imports them."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    with held():
        import keras
        import tensorflow as tf

        tf.get_logger().setLevel("ERROR")
        keras.config.disable_interactive_logging()
    warnings.filterwarnings("ignore", module="tensorflow|keras")


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Hold back what is printed, in C++ too; shown on stderr after an error that is none of Sluice's own."""
    sys.stdout.flush()
    sys.stderr.flush()
    shown = {number: os.dup(number) for number in (1, 2)}
    with tempfile.TemporaryFile() as printed:
        for number in shown:
            os.dup2(printed.fileno(), number)
        try:
            with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                yield
        except SluiceError:
            raise
        except BaseException:
            printed.seek(0)
            os.write(shown[2], printed.read())
            raise
        finally:
            for number, descriptor in shown.items():
                os.dup2(descriptor, number)
                os.close(descriptor)


@contextlib.contextmanager
def console() -> Iterator[Console]:
    """A console on stderr for progress bars, which `held` does not hold back."""
    from rich.console import Console

    with os.fdopen(os.dup(2), "w") as stderr:
        yield Console(file=stderr)
