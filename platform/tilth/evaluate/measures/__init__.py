"""Metrics as kinds, each a thin wrapper on the library that the field scores with."""
