"""Augmenters that add rows, and filters that drop rows with a reason."""
