"""Weights from and to other programs: every format is read and written tensor by tensor."""
