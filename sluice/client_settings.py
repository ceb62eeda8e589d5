"""Settings of the Python client and the daily commands (prefix `SLUICE_`)."""

from __future__ import annotations

from sluice.daemon.settings import RoomSettings, Token, Url


class ClientSettings(RoomSettings):
    """Where the control plane is, and the right to use it."""

    env_prefix = "SLUICE_"

    url: Url = "http://127.0.0.1:8080"
    """Where the control plane is."""
    token: Token | None = None
    """An admin token (`sluice token create --role admin`)."""
    cloud_ca: str | None = None
    """File of the certificate authorities that the control plane's certificate is checked by, for one of your own;
    unset: those that browsers trust."""
