import threading
from contextlib import contextmanager

import pytest

from dlsr import Detector
from dlsr.serve.server import serve


@pytest.fixture(scope="session")
def fitted(tmp_path_factory, image_folder, small_encoder):
    """A model directory with examples. Tests that change it make a copy."""
    folder = tmp_path_factory.mktemp("served") / "model"
    Detector(**small_encoder, thumbnails=10).fit(image_folder).save(folder)
    return folder


@pytest.fixture(scope="session")
def running():
    """A context manager that runs a service in a thread of this process, and gives its URL."""

    @contextmanager
    def run(service, drain_seconds=0):
        urls, ready = [], threading.Event()

        def on_ready(url):
            urls.append(url)
            ready.set()

        options = {"drain_seconds": drain_seconds, "ready": on_ready}
        thread = threading.Thread(target=serve, args=(service, "127.0.0.1", 0), kwargs=options)
        thread.start()
        assert ready.wait(120)
        try:
            yield urls[0]
        finally:
            service.draining = True  # as its signal handler does
            thread.join(60)
        assert not thread.is_alive(), "the service did not end"

    return run
