"""MQTT to Kafka and back: outcomes up, receipts, answers and desired state down; see `bridge.py`."""
