"""Tests of cli/cluster."""
