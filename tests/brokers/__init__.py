"""Real servers for the tests: Mosquitto, Apache Kafka and PostgreSQL, fetched, started and killed."""
