"""The heavy halves of translators: what imports torch, transformers or ctranslate2, loaded in workers only."""
