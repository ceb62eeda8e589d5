"""What the tests of updates share: an agent, other bundles for it, and what it runs."""

from pathlib import Path
from typing import Any

from sluice.dev.processes import Process, Processes
from sluice.wire import bundle as bundles
from tests.integration.control_plane import ControlPlane
from tests.integration.edge_support import Above, MadeBundle, until


def start(processes: Processes, settings: dict[str, str]) -> Process:
    agent = processes.start("agent", ["edge-agent"], settings)
    agent.wait_ready()
    return agent


def offered(made: MadeBundle, plane: ControlPlane, folder: Path, **point: Any) -> str:
    """Another bundle at the control plane, with other fields in its operating point."""
    digest = made.changed(folder, **point)
    plane.offer(folder / digest)
    return digest


def never_exits(made: MadeBundle) -> dict[str, Any]:
    (point,) = bundles.open_bundle(made.folder).manifest.operating_points
    return {"policies": tuple(policy.model_copy(update={"threshold": 1.5}) for policy in point.policies)}


def held(settings: dict[str, str]) -> set[str]:
    """The bundles on the device."""
    return {folder.name for folder in (Path(settings["EDGE_DATA"]) / "bundles").iterdir()}


def runs(above: Above, revision: int, model: str = "columns") -> None:
    until(lambda: above.runs(model).revision == revision and above.reported[-1].revision >= revision)
