"""Group commit: one write and one sync for all messages that wait."""
