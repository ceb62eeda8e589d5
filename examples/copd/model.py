# COPD or not, from gender, age and smoking. Age comes in years, the other two as the numbers of their categories.
import keras
from keras import layers

x = keras.Input((3,), name="patient")
h = layers.Dense(16, activation="relu")(layers.Rescaling([1.0, 1 / 100, 1 / 2])(x))
early = layers.Dense(2, name="early")(h)
final = layers.Dense(2, name="final")(layers.Dense(16, activation="relu")(h))
model = keras.Model(x, [early, final])
