"""Chaos: the whole path on real brokers, hurt in ways that a seed draws, and then counted from the outside.

`make chaos SEED=…`, or `python -m tests.e2e.chaos --help`. The modules, in the order of a run: `bundles` makes two
bundles of one model and knows what each must answer; `path` starts the system under test; `links` lies between its
parts and can be cut; `faults` is the table of what can go wrong, and the plan that a seed makes of it; `corruption`
knows how to break a message; `sensor` publishes readings and hears answers, as a user would; `evidence` collects what
the run left behind, `verdict` judges it, `memory` looks at what the processes hold; `run` is the loop that binds them.
"""
