"""Tests of users/imports."""
