"""Training data on Kafka topics: send a stream and announce it, read a slice again, make `tf.data` of it."""
