"""All that knows Kafka's client, but for the producers of `kbatchd produce`: reading, sending, asking the brokers.

Clients are made after the fork only. A worker's poll loop owns the consumer and the topic watch, its flusher an admin
client; gateways, checks and commands make their own.
"""
