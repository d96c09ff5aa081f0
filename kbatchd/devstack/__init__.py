"""A real Kafka and a real PostgreSQL from Python packages, for the demo, the tests and the bench.

With them what the demo does to the daemon, and what it finds in the database after that. Used in the process and the
thread that own the servers; the daemon has nothing of it.
"""
