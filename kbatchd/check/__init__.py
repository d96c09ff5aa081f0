"""Faults found before they happen: in the file, in the brokers, in the tables, and in real records.

The start-up checks (preflight.py) run in a child process of the daemon, before its workers and at each reload; they
insist on what the daemon needs. `kbatchd check` looks further (checkup.py), in its command's main thread.
"""
