"""Programs that measure; run them from the top of the checkout, `python -m perf.NAME --help`."""
