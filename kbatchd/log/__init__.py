"""The log: one line an event, on standard error.

This is the package's door: others import what they need from here. Set up by the command line, and again in each child
after the fork; called in whatever thread logs.
"""

from kbatchd.log.lines import complain, fold, setup, tell_repeats

__all__ = ["complain", "fold", "setup", "tell_repeats"]
