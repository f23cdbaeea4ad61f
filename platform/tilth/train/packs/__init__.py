"""Trials trained together: one frozen model and one pass over it for all, everything else a trial's own."""
