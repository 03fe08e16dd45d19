"""Servers with the tiny model."""

import pytest
from starlette.testclient import TestClient

from musicldm.app import Options, create_app


@pytest.fixture(scope="session")
def options(tiny_folder, tmp_path_factory):
    """Makes options of a server with the tiny model, each with a new folder unless one is given."""

    def make(**changes) -> Options:
        usual = {"out": tmp_path_factory.mktemp("app"), "models": (str(tiny_folder),), "device": "cpu"}
        return Options(**usual | changes)

    return make


@pytest.fixture(scope="session")
def run():
    """Starts a server: a context that gives a client of it."""
    return lambda options: TestClient(create_app(options), base_url="http://127.0.0.1:7860")


@pytest.fixture(scope="package")
def server(options, run):
    """A client of a server that the tests of this folder share."""
    with run(options()) as client:
        yield client
