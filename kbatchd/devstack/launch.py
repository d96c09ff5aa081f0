"""Become a server program that dies with the process that asked for it.

`process.spawn` runs this file by its path with a bare interpreter: `launch.py SIGNAL PARENT UID GID PROGRAM ARG...`.
It imports nothing of kbatchd. A `preexec_fn` would do the same, but not safely in a process that has threads.
"""

from __future__ import annotations

import ctypes
import os
import sys

#: From linux/prctl.h: the signal this process gets when its parent ends.
PR_SET_PDEATHSIG = 1


def main() -> None:
    """Take the user's identity, ask for the parent's death signal, and become PROGRAM."""
    death_signal, parent, uid, gid = map(int, sys.argv[1:5])
    if uid != os.getuid():
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)
    # After setuid: a change of identity clears the death signal.
    if ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, death_signal) != 0:
        sys.exit("prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:  # it ended before we could ask
        sys.exit("the parent has ended")
    try:
        os.execv(sys.argv[5], sys.argv[5:])  # noqa: S606 - the very point of this file
    except OSError as error:
        sys.exit(f"{sys.argv[5]}: {error.strerror}")


if __name__ == "__main__":
    main()
