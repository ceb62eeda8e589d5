"""The agent on the architecture of its devices, emulated (`make test-device`)."""
