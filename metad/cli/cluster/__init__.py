"""Commands for a cluster of hubs."""
