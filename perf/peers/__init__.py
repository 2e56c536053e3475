"""metad beside other mail servers, each set up by a script of its own, in one interleaved run."""
