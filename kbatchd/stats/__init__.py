"""Numbers and notes in memory that the daemon's processes share, and what a dead worker's tell of its end.

Made by the daemon before it forks. Each process writes its own slot, without a lock; the supervisor and the monitor
read.
"""
