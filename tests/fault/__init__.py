"""Tests of fault."""
