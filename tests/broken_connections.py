"""Marks of tests that break connections."""

import pytest

#: A client does not close a broken connection, so Python warns when it collects the connection.
BREAKS_CONNECTIONS = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.usefixtures("broken_connections"),
]
