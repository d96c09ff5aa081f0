"""The monitor: metrics, health and the status page, in a process of its own."""
