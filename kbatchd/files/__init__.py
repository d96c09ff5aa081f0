"""What comes in whole, files and request bodies, cut into records: NDJSON, JSON, CSV, packed or not.

Called by `kbatchd produce` in its main thread, and for bodies by a gateway, on its event loop or in a thread of its
own.
"""
