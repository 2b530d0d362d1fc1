"""Small images of anything that encoders take; a bad one is grey, never the end of a figure."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sklearn_ape.inspection._plotting import draw_thumbnail, thumbnail


class TestThumbnail:
    def test_every_form_of_one_image_gives_one_thumbnail(self, captioned_images):
        path = captioned_images.images[0]
        image = Image.open(path)
        forms = [
            path,
            Path(path),
            Path(path).read_bytes(),
            image,
            np.asarray(image.convert("RGB")),
        ]
        for form in forms:
            np.testing.assert_array_equal(thumbnail(form), thumbnail(path))

    @pytest.mark.parametrize("bad", [None, "nowhere.png", b"", b"text", 7, np.zeros((3, 4, 5))])
    def test_what_cannot_be_read_is_grey(self, bad):
        assert (thumbnail(bad, 8) == 200).all()

    def test_transparency_is_white_and_the_whole_image_is_seen(self):
        buffer = io.BytesIO()
        wide = Image.new("RGBA", (64, 16), (0, 0, 0, 0))
        wide.paste((255, 0, 0, 255), (0, 0, 8, 16))
        wide.save(buffer, "PNG")
        small = thumbnail(buffer.getvalue(), 32)
        assert small.shape == (32, 32, 3)
        assert small[16, 1].tolist() == [255, 0, 0]
        assert small[16, 30].tolist() == small[0, 0].tolist() == [255, 255, 255]

    def test_an_image_stands_upright_whichever_way_the_axis_points(self, ax):
        top_red = np.zeros((10, 10, 3), np.uint8)
        top_red[:5] = [255, 0, 0]
        for inverted in (False, True):
            ax.set(xlim=(-1, 1), ylim=(1, -1) if inverted else (-1, 1))
            draw_thumbnail(ax, top_red, (0, 0), 1.0)
            figure = ax.figure
            figure.canvas.draw()
            seen = np.asarray(figure.canvas.buffer_rgba())
            x, y = ax.transAxes.transform((0.5, 0.65))
            assert seen[seen.shape[0] - int(y), int(x), :3].tolist() == [255, 0, 0]
