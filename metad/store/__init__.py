"""The mail store: fixed-size logs, a rebuildable index, recovery.  It knows no protocol."""
