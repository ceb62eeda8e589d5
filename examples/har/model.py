# What somebody is doing, from windows of a phone's accelerometer and gyroscope (128 rows of 9 channels at 50 Hz).
import keras
from keras import layers

x = keras.Input((128, 9), name="motion")
h = layers.MaxPooling1D(2)(layers.Conv1D(24, 5, strides=2, activation="relu")(x))
early = layers.Dense(6, name="early")(layers.Dropout(0.2)(layers.Flatten()(layers.AveragePooling1D(4)(h))))
h = layers.MaxPooling1D(2)(layers.Conv1D(48, 5, activation="relu")(h))
h = layers.Conv1D(64, 3, activation="relu")(h)
final = layers.Dense(6, name="final")(layers.Dropout(0.4)(layers.Flatten()(h)))
model = keras.Model(x, [early, final])
