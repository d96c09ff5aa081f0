"""A worker: the poll loop and the flusher, the two threads of a process that the supervisor forks.

The poll loop (worker.py, main thread) owns the consumer and encodes; the flusher owns the connection, claims and
writes. handover.py is the only thing that both touch, under one lock.
"""
