"""Versioned messages, the streams that carry them, and their encoding."""
