"""Tests of store/fsck."""
