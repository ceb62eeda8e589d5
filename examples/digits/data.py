"""scikit-learn's digits (1797 real handwritten digits, 8x8) as a noisy camera would see them.

Noise: each pixel (0 to 16) gets Gaussian noise of standard deviation `NOISE`, and is rounded and cut to 0..16. The
clean images are too easy: nearly all of them would be answered on the device.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

NOISE = 1.5
"""Standard deviation of the noise, in grey levels of 16."""


def noisy_digits(seed: int, noise: float = NOISE) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """x (1797, 8, 8, 1) uint8, 0 to 16, and y (1797,) int64, in random order; the same for the same seed."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    random = np.random.default_rng(seed)
    order = random.permutation(len(images))
    noisy = images[order] + random.normal(0.0, noise, images.shape)
    x = np.clip(np.rint(noisy), 0, 16).astype(np.uint8)
    return x.reshape(-1, 8, 8, 1), labels[order].astype(np.int64)
