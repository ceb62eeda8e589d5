"""`python -m cloud.training JOBDIR`: do the training in JOBDIR/job.json; it reports as `partitioner.events` says."""

import sys
from pathlib import Path

from partitioner import events, quiet


def main() -> int:
    """The exit code: 0 done, 2 failed with a reason."""
    quiet.import_tensorflow()
    from cloud.training.job import work

    return events.run(Path(sys.argv[1]), work)


if __name__ == "__main__":
    sys.exit(main())
