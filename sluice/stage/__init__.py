"""A tier's share of the segments, running.

`segment` runs TFLite, `policy` decides at the exits, `step` is the pure function from a batch to outcomes; the
device uses these three. `worker` is the daemon of the fog and cloud tiers, between two Kafka topics.
"""
