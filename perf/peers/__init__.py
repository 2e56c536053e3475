"""metad beside other mail servers, each set up by its own script, in one interleaved run."""
