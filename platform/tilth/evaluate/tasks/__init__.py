"""What models are put to: how a row is asked or read, and what of it is scored."""
