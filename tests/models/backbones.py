"""Models of `keras.applications` for the tests: untrained, but used to their inputs, so that signals get through."""

from typing import Any

import numpy as np

SIZE = (96, 96, 3)
NAMES = ("MobileNetV2", "ResNet50", "EfficientNetB0")


def whole(name: str) -> Any:
    """As it is, for 10 classes, softmax at its end."""
    import keras

    model = getattr(keras.applications, name)(weights=None, input_shape=SIZE, classes=10)
    get_used_to(model, images(4, "float32"))
    return model


def transferred(name: str) -> Any:
    """The usual pattern of transfer learning: nested, frozen, under a new head, on raw pixels."""
    import keras
    from keras import layers

    base = getattr(keras.applications, name)(weights=None, input_shape=SIZE, include_top=False)
    get_used_to(base, images(4, "float32") / 127.5 - 1)
    base.trainable = False
    x = keras.Input(SIZE, dtype="uint8")
    h = base(layers.Rescaling(1 / 127.5, -1)(layers.RandomFlip("horizontal")(x)), training=False)
    h = layers.Dropout(0.2)(layers.GlobalAveragePooling2D(name="pooled")(h))
    return keras.Model(x, layers.Dense(10, activation="softmax")(h))


def get_used_to(model: Any, x: Any) -> None:
    """Give every batch norm of `model` the statistics of `x`: with those that Keras begins with the signal dies out on
    its way, all answers are the same, and every cut looks right."""
    from keras import layers

    norms = [layer for layer in model.layers if isinstance(layer, layers.BatchNormalization)]
    for layer in norms:
        layer.momentum = 0.0
    model(x, training=True)
    for layer in norms:
        layer.momentum = 0.99


def images(n: int, dtype: str) -> Any:
    """(n, 96, 96, 3) of 0 to 255, smooth enough to differ from one another."""
    rng = np.random.default_rng(1)
    coarse = rng.uniform(0, 255, (n, 6, 6, 3)).repeat(16, axis=1).repeat(16, axis=2)
    return (0.8 * coarse + 0.2 * rng.uniform(0, 255, (n, *SIZE))).astype(dtype)
