"""A real Kafka and a real PostgreSQL from Python packages, for the demo, the tests and the bench."""
