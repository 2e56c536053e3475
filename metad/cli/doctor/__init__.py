"""`metad doctor`: the machine, the configuration and the data, each finding with its remedy."""
