"""Tests of store/commit."""
