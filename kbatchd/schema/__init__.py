"""The tables of the schema `kbatchd`: progress, the ledger, gaps, and the migrations that make them.

Every function works on its caller's connection, in the caller's thread: a flusher, a gateway's database thread, the
monitor's watcher, or a command.
"""
