"""`python -m cloud.training JOBDIR [FD]`: the training in JOBDIR/job.json; it reports as `partitioner.events` says."""

import sys
from pathlib import Path

from partitioner import events, quiet


def main() -> int:
    """The exit code: 0 done, 2 failed with a reason."""
    quiet.import_tensorflow()
    from cloud.training.job import work

    descriptor = int(sys.argv[2]) if len(sys.argv) > 2 else None  # of the stream that it works on
    return events.run(Path(sys.argv[1]), lambda folder, said: work(folder, said, descriptor))


if __name__ == "__main__":
    sys.exit(main())
