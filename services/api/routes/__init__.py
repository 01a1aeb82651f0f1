"""HTTP routes of the gateway, a file per resource."""
