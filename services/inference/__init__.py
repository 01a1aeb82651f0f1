"""The inference service: loads the promoted version and answers POST /inference with its decisions."""
