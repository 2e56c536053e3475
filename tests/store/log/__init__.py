"""Tests of store/log."""
