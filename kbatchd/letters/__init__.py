"""Dead letters after the fact: listed, shown, discarded, and tried again.

Called by `kbatchd dead-letters`, in the command's main thread.
"""
