"""A member of a consumer group as a process of its own: `python -m tests.integration.group_member BOOTSTRAP TOPIC`.

Of each batch it says on standard output what it used, `[[topic partition, number], …]` in a line, before it commits it.
It leaves when its standard input ends.
"""

import json
import sys
import threading

from sluice.doors.kafka import KafkaCluster
from sluice.streams.group import Group

BATCH = 5


def main(bootstrap: str, topic: str) -> None:
    config: dict[str, object] = {"shape": [2], "dtype": "int64"}
    cluster = KafkaCluster(bootstrap=bootstrap)
    with Group(cluster, [topic], "raw", config, f"g-{topic}", batch=BATCH) as group:

        def wait_for_the_end() -> None:
            sys.stdin.read()
            group.stopping = True

        threading.Thread(target=wait_for_the_end, daemon=True).start()
        for batch in group:
            print(json.dumps(batch.x.astype(int).tolist()), flush=True)
            group.commit(batch)


if __name__ == "__main__":
    main(*sys.argv[1:])
