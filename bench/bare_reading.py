"""What reading a stream is compared with: a bare consume loop, and `tf.data` from arrays that are in memory already."""

from __future__ import annotations

import time

import confluent_kafka as ck
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray


def consume(bootstrap: str, topic: str, partitions: int, count: int) -> float:
    """Seconds in which `count` records are consumed, a thousand at a time, and each one's value is looked at."""
    consumer = ck.Consumer({"bootstrap.servers": bootstrap, "group.id": "bare", "enable.auto.commit": False})
    begun = time.perf_counter()
    consumer.assign([ck.TopicPartition(topic, number, 0) for number in range(partitions)])
    seen = 0
    while seen < count:
        seen += sum(message.value() is not None for message in consumer.consume(1000, 0.02) if message.error() is None)
    seconds = time.perf_counter() - begun
    consumer.close()
    return seconds


def from_memory(x: NDArray[np.generic], y: NDArray[np.int64], batch: int) -> tf.data.Dataset:
    """As a user of TensorFlow writes it."""
    return tf.data.Dataset.from_tensor_slices((x, y)).shuffle(len(x)).batch(batch).prefetch(2)


def epoch(data: tf.data.Dataset) -> float:
    """Seconds for one time through."""
    begun = time.perf_counter()
    for _ in data:
        pass
    return time.perf_counter() - begun
