"""Importing TensorFlow without its greetings, which say nothing that a reader of a job's log could use.

Two settings of TensorFlow's own, taken from the environment by its C++ side before any Python could set them; and what
it prints while it starts is held back, and shown only if it cannot start.
"""

from __future__ import annotations

import os
import sys
import tempfile
import warnings


def import_tensorflow() -> None:
    """Import TensorFlow and Keras; call it before any module that imports them."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    sys.stderr.flush()
    shown = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            import keras
            import tensorflow as tf

            tf.get_logger().setLevel("ERROR")
            keras.config.disable_interactive_logging()
        except BaseException:
            held.seek(0)
            os.write(shown, held.read())
            raise
        finally:
            os.dup2(shown, 2)
            os.close(shown)
    warnings.filterwarnings("ignore", module="tensorflow|keras")
