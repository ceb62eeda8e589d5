"""A program: a Keras model and calibration data in, a bundle of TFLite segments and certified thresholds out."""
