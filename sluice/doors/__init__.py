"""One door an outside system: `mqtt` (paho), `kafka` (confluent_kafka), `http` (httpx).

A door turns the client library's ways into ours: records, callbacks, `TemporaryError` and `PermanentError`.
No other module imports those libraries.
"""
