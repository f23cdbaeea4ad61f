"""Scoring models on rows that they never saw."""
