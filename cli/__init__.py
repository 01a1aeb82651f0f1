"""Commands: a function per command, which composes the parts and prints the result."""
