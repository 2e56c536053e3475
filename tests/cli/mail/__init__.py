"""Tests of cli/mail."""
