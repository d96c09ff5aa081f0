"""Producers for `kbatchd produce`; one of them remembers in Kafka how far a file is sent."""
