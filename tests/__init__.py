"""Tests: `unit` without network, `integration` on real brokers, `e2e` with whole processes."""
