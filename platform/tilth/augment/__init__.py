"""Augmenters that add rows, and gates that drop added rows, each for a named reason."""
