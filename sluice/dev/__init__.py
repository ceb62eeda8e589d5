"""For development and the demo: embedded brokers, every room as a process of its own, the whole path in one go.

Rooms are started by their own `sluice` commands, never imported.
"""
