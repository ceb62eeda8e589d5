"""What every daemon has alike: settings from TOML or the environment, JSON logs, a stop signal, metrics."""
