"""Marks of tests that break connections."""

import pytest

#: A connection that breaks is not closed by its client, which Python warns of when it is forgotten.
BREAKS_CONNECTIONS = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.usefixtures("broken_connections"),
]
