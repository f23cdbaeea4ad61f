"""Measurements beside other tools and beside bare loops; see BENCHMARKS.md and `python -m tests.bench --help`."""
