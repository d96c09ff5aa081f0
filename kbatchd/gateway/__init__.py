"""The gateway: HTTP requests into Kafka.

`server.run_gateway` is a process that the supervisor forks, with one event loop; database.py has a thread of its own.
"""
