"""Faults on purpose: proxies that understand a protocol, brokers that may die, and the oracle that keeps the books.

`wire` relays frames and asks `rules` what becomes of each; `kafka_wire` and `postgres_wire` know the frames of the two
protocols. `brokers` are one to three real brokers behind such proxies. `oracle` compares a topic with what became of
it. `planted` is the daemon with one mechanism taken out: the oracle must notice.

Two kinds of plays stand on these. `scenarios` are single stories, each told to its end on a `stage`. `matrix` has rows
(`rows_*`) of faults that come and go, again and again, in a `play`: records come without a pause (`traffic`), and the
`sampler` judges every moment; docs/faults.md is its `report`. Used by tests and by `make faults` only.
"""
