"""Judges as an evaluation: whose answers are better, how sure that is, and how far the judges can be trusted."""
