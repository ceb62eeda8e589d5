"""`python -m partitioner JOBDIR`: do the job in JOBDIR/job.json; see `events` for what it reports."""

import sys
from pathlib import Path

from partitioner import events, quiet


def main() -> int:
    """The exit code: 0 done, 2 failed with a reason."""
    quiet.import_tensorflow()
    from partitioner.job import work

    return events.run(Path(sys.argv[1]), work)


if __name__ == "__main__":
    sys.exit(main())
