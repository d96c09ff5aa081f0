"""Connections to PostgreSQL, its catalogue, and its COPY.

Connections are made after the fork only; whoever makes one owns it, in one thread.
"""
