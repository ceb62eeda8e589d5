# A classifier of 8x8 digits with two early exits. Pixels come as integers from 0 to 16; scaling is part of the model.
# What crosses each cut is a bottleneck of 4x4x2 = 32 values (32 bytes as int8; the raw image has 64), made before the
# exit branches off. tanh keeps its values between -1 and 1, which int8 holds well.
import keras
from keras import layers


def narrow(h):
    return layers.Conv2D(2, 1, activation="tanh")(h)


def exit_head(h, name):
    return layers.Dense(10, name=name)(layers.Dropout(0.15)(layers.Flatten()(h)))


pixels = keras.Input((8, 8, 1), dtype="uint8", name="pixels")
h = layers.GaussianNoise(0.1)(layers.Rescaling(1 / 16)(pixels))
h = layers.Conv2D(12, 3, padding="same", activation="relu")(h)
h = narrow(layers.MaxPooling2D(2)(h))
edge = exit_head(h, "edge")

h = layers.Conv2D(32, 3, padding="same", activation="relu")(h)
h = layers.Conv2D(32, 3, padding="same", activation="relu")(h)
h = narrow(h)
fog = exit_head(h, "fog")

h = layers.Conv2D(64, 3, padding="same", activation="relu")(h)
h = layers.Dropout(0.3)(layers.Flatten()(h))
h = layers.Dropout(0.3)(layers.Dense(128, activation="relu")(h))
cloud = layers.Dense(10, name="cloud")(h)

model = keras.Model(pixels, [edge, fog, cloud])
