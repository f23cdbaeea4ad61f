"""Completions of language models: generators of four kinds, and the methods that make datasets with them."""
