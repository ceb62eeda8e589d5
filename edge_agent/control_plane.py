"""The control plane, for who may have to ask it: httpx is loaded with the first question, and takes 5 MB."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from edge_agent.settings import EdgeSettings

if TYPE_CHECKING:
    from sluice.doors.http import HttpDoor


class ControlPlane:
    """The door to the control plane, made when it is first used; for one thread, but for `close`."""

    def __init__(self, settings: EdgeSettings) -> None:
        self._settings = settings

    @cached_property
    def door(self) -> HttpDoor:
        """The door."""
        from sluice.doors.http import HttpDoor

        return HttpDoor(self._settings.cloud_url, self._settings.token, self._settings.cloud_ca)

    def close(self) -> None:
        """Close the connections, if there are any."""
        if "door" in self.__dict__:
            self.door.close()
