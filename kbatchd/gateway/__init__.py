"""The gateway: HTTP requests into Kafka. `server.run_gateway` is a process of the supervisor's."""
