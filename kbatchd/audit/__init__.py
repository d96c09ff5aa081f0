"""What was promised, compared with what is there: Kafka, progress, the ledger, dead letters, gaps, and the table.

Called by `kbatchd verify`, and by `kbatchd replay-range`, which reads a range again; in the command's main thread.
"""
