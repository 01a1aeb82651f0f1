"""The runtime of a service: settings, logs, lifecycle, HTTP server, ports and child processes."""
