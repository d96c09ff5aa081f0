"""Faults on purpose: proxies that understand a protocol, brokers that may die, and the oracle that keeps the books.

`wire` relays frames and asks `rules` what becomes of each; `kafka_wire` and `postgres_wire` know the frames of the two
protocols. `brokers` are one to three real brokers behind such proxies. `oracle` compares a topic with what became of
it. `planted` is the daemon with one mechanism taken out: the oracle must notice. Used by tests only.
"""
