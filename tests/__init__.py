"""Tests of metad."""
