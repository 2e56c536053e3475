"""Tests of protocol/pop3."""
