"""Tests of store/gc."""
