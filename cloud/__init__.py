"""The control plane: registry, jobs, devices, rollouts and results behind REST; see `app.py`."""
