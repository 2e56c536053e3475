"""Recovery after a crash, and the rebuild of the index from the logs."""
