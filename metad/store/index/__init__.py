"""The index: a view of the logs in LMDB, rebuilt whenever it is in doubt."""
