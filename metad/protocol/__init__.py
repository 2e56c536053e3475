"""The wire protocols, sans-IO: octets in, events and replies out; no sockets, no clocks.

Nothing here knows the store, the configuration or the event loop.
"""
