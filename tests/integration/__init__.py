"""Tests that need a real Mosquitto, Apache Kafka or PostgreSQL."""
