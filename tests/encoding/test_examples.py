import io

from PIL import Image

from dlsr.encoding.examples import thumbnail


def test_a_thumbnail_is_a_small_jpeg(photographs):
    with Image.open(io.BytesIO(thumbnail(photographs[0], 50))) as small:
        assert small.format == "JPEG"
        assert max(small.size) == 50
