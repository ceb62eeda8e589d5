"""Thresholds with a certificate, and what the samples are divided into for it."""
