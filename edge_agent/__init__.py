"""The daemon on the device: sensor readings in, answers out, hard samples on to the next tier; see `agent.py`."""
