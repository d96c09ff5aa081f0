"""The monitor: metrics, health and the status page, and how far each partition is behind its topic.

`server.run_monitor` is a process that the supervisor forks: an event loop, and the watcher's thread. `kbatchd status`
asks lag.py and standing.py in its main thread.
"""
