"""Connections to PostgreSQL, its catalogue, and its COPY.

Connections are made after the fork only; the thread that makes one owns it.
"""
