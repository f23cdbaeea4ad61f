"""Training stages on Ray Train and DeepSpeed."""
