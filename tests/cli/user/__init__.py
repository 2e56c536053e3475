"""Tests of cli/user."""
