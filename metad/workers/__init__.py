"""Workers: the event loop, the sessions on it, and what they share."""
