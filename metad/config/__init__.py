"""The configuration: its model, the table of settings, parsing and checks."""
