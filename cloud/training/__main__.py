"""`python -m cloud.training JOBDIR [FD]`: the job in JOBDIR/job.json; it reports as `partitioner.events` says."""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

from partitioner import events, quiet

MODULES = {
    "training": "cloud.training.job",
    "online": "cloud.training.online",
    "evaluation": "cloud.training.evaluation",
    "live-evaluation": "cloud.training.evaluation",
}
"""By kind of job, the module whose `work` does it."""


def work(folder: Path, said: events.Events, descriptor: int | None) -> dict[str, Any]:
    """Do the job in `folder`, on the stream that comes through `descriptor`; the result as it is reported."""
    kind = json.loads((folder / "job.json").read_bytes())["kind"]
    done: dict[str, Any] = importlib.import_module(MODULES[kind]).work(folder, said, descriptor)
    return done


def main() -> int:
    """The exit code: 0 done, 2 failed with a reason."""
    quiet.import_tensorflow()
    descriptor = int(sys.argv[2]) if len(sys.argv) > 2 else None  # of the stream that it works on
    return events.run(Path(sys.argv[1]), lambda folder, said: work(folder, said, descriptor))


if __name__ == "__main__":
    sys.exit(main())
