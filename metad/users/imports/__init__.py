"""Imports of users from the files of other programs."""
