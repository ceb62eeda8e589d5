"""The ground that the rooms share: wire, doors, daemon, stage, streams, client, command line, development set.

ARCHITECTURE.md tells the journey of one sample through them.
"""
