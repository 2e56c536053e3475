"""Filters: their interface, rspamd's answers, headers."""
