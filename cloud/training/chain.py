"""A bundle, asked as its tiers would answer: segment after segment in TFLite, with the codec where a tier ends, and its
exit policies. What it says of an operating point is what devices and stages would say of the same records.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cloud.training.answers import Answers, Asked
from partitioner.segments.chain import run_chain
from sluice.stage.policy import gate, passes
from sluice.stage.segment import load_segment
from sluice.streams.samples import Array
from sluice.wire.errors import PermanentError
from sluice.wire.manifest import parse_manifest

ANSWER = "operating point"
"""Beside the exits: what is answered, by the exit that answers."""
FILE = "segment-{}.tflite"
"""A segment's file in the job's folder, by its number."""


def chain(manifest: str, operating_point: str, folder: Path) -> Asked:
    """The bundle of this `manifest` (JSON) at an operating point, its segments' files in `folder`.

    Raises `PermanentError` when it does not classify one tensor, or has no such operating point.
    """
    found = parse_manifest(manifest.encode())
    if found.task != "classification" or len(found.inputs) != 1:
        raise PermanentError("only a bundle that tells classes apart, from one input, can be evaluated on a stream")
    point = found.operating_point(operating_point)
    segments = [load_segment((folder / FILE.format(one.index)).read_bytes(), one) for one in found.segments]
    crossings = [found.crossing(one.index) for one in found.segments]
    exits = [one.exit.name for one in found.exits if one.exit]
    (taken,) = found.inputs

    def answer(x: Array) -> Answers:
        if not len(x):
            return Answers({})
        given = {taken.name: x.astype(taken.dtype, copy=False)}
        logits = run_chain(segments, crossings, given, point.placement, point.codec).logits
        by = np.full(len(x), len(exits) - 1)
        for number in reversed(range(len(exits) - 1)):
            policy = point.policies[number]
            by[passes(policy, gate(policy.measure, logits[number], policy.temperature)[1])] = number
        said = np.stack(logits)[by, np.arange(len(x))]
        return Answers(dict(zip(exits, logits, strict=True)) | {ANSWER: said}, by)

    return Asked(tuple(exits), (ANSWER,), len(found.labels), taken.shape, np.dtype(taken.dtype), answer)
