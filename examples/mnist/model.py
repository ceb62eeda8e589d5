# Handwritten digits, 28 x 28 grey pixels from 0 to 255, with one early exit.
import keras
from keras import layers

pixels = keras.Input((28, 28), dtype="uint8", name="pixels")
h = layers.Rescaling(1 / 255)(layers.Reshape((28, 28, 1))(pixels))
h = layers.MaxPooling2D(2)(layers.Conv2D(8, 5, strides=2, activation="relu")(h))
early = layers.Dense(10, name="early")(layers.Flatten()(h))
h = layers.Conv2D(32, 3, activation="relu", padding="same")(h)
final = layers.Dense(10, name="final")(layers.Dropout(0.3)(layers.Flatten()(h)))
model = keras.Model(pixels, [early, final])
