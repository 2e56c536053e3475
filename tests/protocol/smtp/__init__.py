"""Tests of protocol/smtp."""
