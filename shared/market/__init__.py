"""Bars, instruments, the trading week, sessions, file formats and synthetic markets."""
