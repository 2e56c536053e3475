"""Several nodes, one hub: the view of the members, the rules of copies, and the links between them.

Rules of this folder:

* Nothing here reads a clock or a socket, or waits: events and the time are handed in, messages and
  timers come out, so that a simulation can run the same code.  The one exception is `transport`.
* A hub without `[cluster]` imports nothing of it.
"""
