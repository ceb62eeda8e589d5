"""The bare minimum that the agent is compared with: parse a reading, complete the window, run the segment, look at it.

No broker, no store, no checks, no names, one sample at a time at the pace of the sensor: what is left is what any
program in Python has to do for a sample on a device.

    python -m bench.bare_device BUNDLE READINGS --blocks COUNT --rate HZ

READINGS is a file with a JSON reading a line. Prints CPU seconds of the thread a sample, in all and for the segment's
run alone, as JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter

from sluice.wire.bundle import open_bundle


def bare(model: bytes, readings: list[bytes], blocks: int, rate_hz: float) -> tuple[float, float, int]:
    """(CPU seconds a sample, those of them in the segment, labels' sum); `blocks` of `readings` are a window."""
    core = Interpreter(model_content=model, num_threads=1)
    runner = core.get_signature_runner()
    (given,) = runner.get_input_details().values()
    outputs = [detail["index"] for detail in runner.get_output_details().values()]
    del runner
    shape = (1, *given["shape"][1:])
    core.resize_tensor_input(given["index"], shape)
    core.allocate_tensors()
    window: deque[Any] = deque(maxlen=blocks)
    spent = inside = 0.0
    samples = labels = 0
    begun = time.monotonic()
    for i, payload in enumerate(readings):
        wait = begun + i / rate_hz - time.monotonic()
        if wait > 0:
            time.sleep(wait)
        start = time.thread_time()
        window.append(np.asarray(json.loads(payload)["values"], np.float32))
        if len(window) == blocks:
            whole = np.concatenate(list(window)).reshape(shape)
            before = time.thread_time()
            core.set_tensor(given["index"], whole)
            core.invoke()
            made = [core.get_tensor(number) for number in outputs]
            inside += time.thread_time() - before
            labels += int(min(made, key=lambda array: array.size).argmax())
            samples += 1
        spent += time.thread_time() - start
    return spent / samples, inside / samples, labels


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("readings", type=Path)
    parser.add_argument("--blocks", type=int, required=True)
    parser.add_argument("--rate", type=float, required=True)
    args = parser.parse_args()
    bundle = open_bundle(args.bundle)
    model = bundle.read(bundle.manifest.segments[0].file)
    whole, inside, labels = bare(model, args.readings.read_bytes().splitlines(), args.blocks, args.rate)
    print(json.dumps({"sample_s": whole, "run_s": inside, "labels": labels}))


if __name__ == "__main__":
    main()
