"""The services: each is a thin asynchronous shell around pure code, and none imports another."""
