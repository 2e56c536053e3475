"""Group commit: one write and one sync for all waiting messages."""
