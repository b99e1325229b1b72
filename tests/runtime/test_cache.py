import pytest

from dlsr import OutputError
from dlsr.runtime.cache import content_of
from shared import files_no_larger_than


def write(path):
    path.write_bytes(bytes(1000))


def test_what_the_cache_cannot_keep_is_made_anew(own_cache):
    own_cache.rmdir()
    own_cache.write_text("no folder")
    assert content_of("graph", ["of", "this"], write) == bytes(1000)


def test_a_disk_that_is_full_everywhere_is_one_error(own_cache):
    """It was a traceback."""
    with files_no_larger_than(100), pytest.raises(OutputError, match="check space and permissions"):
        content_of("graph", ["of", "this"], write)
