"""What several services use: the pure core, messages, adapters and the runtime of a service."""
