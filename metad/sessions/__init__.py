"""Sessions: one client connection, from accept to close."""
