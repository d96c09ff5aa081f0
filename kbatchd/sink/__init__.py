"""A batch, its books and its dead letters, into PostgreSQL in one transaction.

Called by a worker's flusher thread, which owns the connection; by the replay of dead letters and the trial of `kbatchd
check`, in their commands' main threads. The poll loop only fills batches.
"""
