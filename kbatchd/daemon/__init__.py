"""The supervisor: it forks, watches and replaces processes, and knows nothing of Kafka or PostgreSQL.

Run by `kbatchd run`, in the daemon's main process, which has one thread. reload.py and prune.py are what it forks now
and then: they run in processes of their own.
"""
