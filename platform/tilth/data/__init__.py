"""Rows: their schema, where they come from, and the ledger that writes each of them exactly once."""
