"""What records look like: a table inferred from them, a record made up for a table.

Pure functions; used by `kbatchd infer`, by `kbatchd produce --generate`, and by a gateway's description of itself.
"""
