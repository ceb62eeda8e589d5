"""Updates: a control plane that is away is waited for, and nothing that is on its way is tidied up."""

import queue
from pathlib import Path

from edge_agent.settings import EdgeSettings
from edge_agent.updates import Prepared, Updater, keep_only
from sluice.wire.state import Desired
from tests.unit.edge_stand_ins import KEY

WANTED = "ab" * 32


def test_an_order_is_known_while_it_waits_for_the_control_plane(tmp_path: Path) -> None:
    settings = EdgeSettings(device_id="d", public_keys=[KEY], data=tmp_path, cloud_url="http://127.0.0.1:9")
    reports: queue.SimpleQueue[Prepared] = queue.SimpleQueue()
    updater = Updater(settings, reports.put)
    assert updater.ordered == ""
    desired = Desired(device_id="d", revision=1, model="m", bundle=WANTED, operating_point="p")
    updater.order(desired, b"envelope")
    report = reports.get(timeout=20)
    assert (report.final, report.stage, report.desired) == (False, None, desired)
    assert "control plane" in str(report.error)
    assert updater.ordered == WANTED
    updater.close()


def test_only_the_bundles_that_nobody_needs_are_removed(tmp_path: Path) -> None:
    for digest in ("running", "before", "coming", "old"):
        (tmp_path / "bundles" / digest / "blobs").mkdir(parents=True)
    keep_only(tmp_path, {"running", "before", "coming"})
    assert sorted(path.name for path in (tmp_path / "bundles").iterdir()) == ["before", "coming", "running"]
    keep_only(tmp_path / "none", set())
