"""Converts weights from and to other programs' formats, one tensor at a time."""
