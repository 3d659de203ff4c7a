"""The conversion command."""

import contextlib
import io
import json

import pytest


@pytest.fixture(scope="session")
def convert():
    """Runs ``python -m conversion`` in this process; returns the figures of ``--json``."""
    from conversion.__main__ import main

    def run(*args) -> dict:
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            assert main([*map(str, args), "--json"]) == 0
        return json.loads(output.getvalue())

    return run
