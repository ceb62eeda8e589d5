"""Runs in other environments: `python prove.py BUNDLE…` tells in JSON what runs there and how the segments fare.

All segments of each bundle are loaded and proven as the agent does it (`load_segments`, which raises where a golden
sample is off by more than its tolerance); then how far off they are is told, one sample at a time and all at once.
"""

import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from sluice.stage import segment as segments
from sluice.wire import bundle as bundles


def delegated(content: bytes, **options: Any) -> bool:
    """Whether the runtime gave operations of this segment to a delegate: XNNPACK, there is no other."""
    _, interpreter = segments.runtime()
    core = interpreter(model_content=content, num_threads=1, **options)
    core.allocate_tensors()
    return any(operation["op_name"] == "DELEGATE" for operation in core._get_ops_details())


def without_delegates() -> dict[str, Any]:
    """The option of an interpreter that has none."""
    module = __import__(segments.runtime()[1].__module__, fromlist=["OpResolverType"])
    return {"experimental_op_resolver_type": module.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES}


def prove(folder: Path) -> list[dict[str, Any]]:
    """What became of each segment of the bundle in `folder`."""
    manifest = bundles.open_bundle(folder).manifest
    told = []
    for running in segments.load_segments(folder, manifest, range(len(manifest.segments))):
        spec = running.spec
        content = bundles.read_blob(folder / bundles.BLOBS, spec.file)
        with np.load(io.BytesIO(bundles.read_blob(folder / bundles.BLOBS, spec.golden))) as golden:
            arrays = {name: golden[name] for name in golden.files}
        inputs = {name.removeprefix("in."): array for name, array in arrays.items() if name.startswith("in.")}
        count = len(next(iter(inputs.values())))
        together = running.run(inputs)
        single = [running.run({name: array[i : i + 1] for name, array in inputs.items()}) for i in range(count)]
        off = {"together": 0.0, "single": 0.0}
        for name, expected in arrays.items():
            if name.startswith("out."):
                made = name.removeprefix("out.")
                alone = np.concatenate([one[made] for one in single])
                for how, outputs in (("together", together[made]), ("single", alone)):
                    far = np.abs(outputs.astype(np.float64) - expected.astype(np.float64)).max(initial=0.0)
                    off[how] = max(off[how], float(far))
        told.append(
            {
                "tolerance": spec.tolerance,
                "samples": count,
                "off": off,
                "delegate": delegated(content),
                "delegate_without": delegated(content, **without_delegates()),
            }
        )
    return told


if __name__ == "__main__":
    proven = [prove(Path(folder)) for folder in sys.argv[1:]]
    print(json.dumps({"profile": segments.profile(), "bundles": proven}))
