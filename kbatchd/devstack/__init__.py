"""A real Kafka and a real PostgreSQL from Python packages, for the demo, the tests and the bench; what the demo proves.

Used in the process and the thread that own the servers; the daemon has nothing of it.
"""
