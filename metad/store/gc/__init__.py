"""The garbage collector, and the expiry of mail."""
