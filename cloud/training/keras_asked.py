"""A Keras model, asked for the logits of all its exits; a bundle is asked in `chain`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tensorflow as tf

from cloud.training.answers import Answers, Asked
from cloud.training.loss import by_exit, log
from partitioner.anatomy.exits import anatomy, gives_logits
from partitioner.anatomy.models import load_model
from sluice.streams.samples import Array
from sluice.wire.errors import PermanentError

AT_ONCE = 256
"""Samples that a Keras model is given together."""


def keras_model(model: dict[str, str], folder: Path) -> Asked:
    """The Keras model of a job file, as it would be used: without dropout and the like."""
    loaded = load_model(model, folder)
    found = anatomy(loaded, task="classification")
    if len(found.inputs) != 1:
        raise PermanentError(f"the model has {len(found.inputs)} inputs: a stream carries one tensor a sample")
    exits = by_exit(loaded, found)
    (only,) = exits.inputs
    signature = tf.TensorSpec((None, *only.shape[1:]), only.dtype)
    forward = tf.function(lambda x: exits(x, training=False), input_signature=[signature])
    as_logits = {one.name: gives_logits(found.graph, one.output) for one in found.exits}

    def answer(x: Array) -> Answers:
        outputs = [forward(tf.cast(x[i : i + AT_ONCE], only.dtype)) for i in range(0, len(x), AT_ONCE)]
        if not outputs:
            return Answers({})
        whole = {name: tf.concat([one[name] for one in outputs], 0) for name in as_logits}
        return Answers({name: (given if as_logits[name] else log(given)).numpy() for name, given in whole.items()})

    return Asked(tuple(as_logits), (), found.classes, tuple(only.shape[1:]), np.dtype(str(only.dtype)), answer)
