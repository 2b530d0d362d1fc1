"""SimilarityMapDisplay: exact means, and peaks where an object was pasted."""

import threading

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline

from sklearn_ape import APEAligner, CCAAligner, KernelAligner, load_starter
from sklearn_ape.datasets import load_openmoji
from sklearn_ape.encoders import EncodingError, TimmImageEncoder
from sklearn_ape.inspection import SimilarityMapDisplay, compute_similarity_maps
from tests.encoders.test_timm import save_model


class TestGrid:
    @pytest.mark.parametrize("pooling", ["auto", "mean", "gem"])
    def test_mean_over_cells_is_the_feature(self, captioned_images, pooling):
        images = captioned_images.images[:3]
        encoder = TimmImageEncoder("efficientnet_lite0", pooling=pooling, cache=None)
        grid, pixels = encoder.transform_grid(images)
        assert grid.shape == (3, 7, 7, 1280)
        assert pixels.shape == (3, 224, 224, 3)
        assert pixels.dtype == np.uint8
        expected = encoder.transform(images)
        np.testing.assert_allclose(grid.mean(axis=(1, 2)), expected, atol=2e-3)

    def test_tokens_of_a_transformer(self, captioned_images, tmp_path):
        save_model(tmp_path, "test_vit", num_classes=7)
        images = captioned_images.images[:2]
        encoder = TimmImageEncoder(str(tmp_path), pooling="mean", cache=None)
        grid, _ = encoder.transform_grid(images)
        assert grid.shape[1] == grid.shape[2] > 1
        np.testing.assert_allclose(grid.mean(axis=(1, 2)), encoder.transform(images), atol=2e-3)
        with pytest.raises(ValueError, match="is not a mean over the image"):
            encoder.set_params(pooling="cls").transform_grid(images)

    def test_enlarged_images_have_a_finer_grid(self, captioned_images):
        images = captioned_images.images[:2]
        encoder = TimmImageEncoder("efficientnet_lite0", cache=None)
        grid, pixels = encoder.transform_grid(images, enlarge=True)
        assert grid.shape == (2, 14, 14, 1280)
        assert pixels.shape == (2, 448, 448, 3)
        usual_pixels = encoder.transform_grid(images)[1]
        reduced = pixels.reshape(2, 224, 2, 224, 2, 3).mean(axis=(2, 4))
        assert np.abs(reduced - usual_pixels).mean() < 5  # the same part of the image

    def test_fixed_input_size_is_not_enlarged(self, captioned_images, tmp_path):
        save_model(tmp_path, "test_vit", num_classes=7)
        encoder = TimmImageEncoder(str(tmp_path), pooling="mean", cache=None)
        images = captioned_images.images[:2]
        grid, pixels = encoder.transform_grid(images)
        enlarged, enlarged_pixels = encoder.transform_grid(images, enlarge=True)
        np.testing.assert_array_equal(enlarged, grid)
        np.testing.assert_array_equal(enlarged_pixels, pixels)

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("mobilenetv3_small_050", "Pass pooling='mean'"),  # its features are not the map's
            ("levit_128s", "LevitDistilled has no grid of features"),
            ("crossvit_tiny_240", "CrossVit has no grid of features"),
        ],
    )
    def test_network_without_grid_raises(self, captioned_images, tmp_path, name, message):
        save_model(tmp_path, name, num_classes=7)
        encoder = TimmImageEncoder(str(tmp_path), cache=None)
        with pytest.raises(ValueError, match=message):
            encoder.transform_grid(captioned_images.images[:1])

    def test_unsupported_options_raise(self, captioned_images):
        encoder = TimmImageEncoder("efficientnet_lite0", views=2, cache=None)
        with pytest.raises(ValueError, match="requires views=1"):
            encoder.transform_grid(captioned_images.images[:1])

    def test_images_are_computed_in_n_jobs_threads(self, captioned_images, monkeypatch):
        """With all threads for each image, they wait for each other while the CPU is busy."""
        threads = set()
        make = TimmImageEncoder._make_tensors

        def record(encoder, network, batch):
            threads.add((threading.current_thread().name, torch.get_num_threads()))
            return make(encoder, network, batch)

        monkeypatch.setattr(TimmImageEncoder, "_make_tensors", record)
        encoder = TimmImageEncoder(cache=None, n_jobs=2)
        encoder.transform_grid(captioned_images.images[:8])
        assert threads
        assert threads <= {("sklearn_ape_0", 1), ("sklearn_ape_1", 1)}

    def test_unreadable_image_raises(self):
        with pytest.raises(EncodingError, match=r"missing\.png"):
            TimmImageEncoder(cache=None).transform_grid(["missing.png"])

    def test_unreadable_image_raises_even_if_transform_skips_it(self, captioned_images):
        encoder = TimmImageEncoder(cache=None, on_error="nan")
        with pytest.raises(EncodingError, match=r"row 1: 'missing\.png'"):
            encoder.transform_grid([captioned_images.images[0], "missing.png"])


class TestMaps:
    def test_mean_is_the_cosine(self, captioned_images, image_encoder, text_encoder):
        images, captions = captioned_images.images[:20], captioned_images.captions[:20]
        texts = ["a cat", "food", "a train"]
        extended, concatenated = (
            APEAligner(init="starter", init_params={"own_share": share}).fit(images, captions)
            for share in (0, 0.4)
        )
        aligner = KernelAligner(text_encoder=text_encoder)
        pipeline = make_pipeline(image_encoder, aligner).fit(images, captions)
        aligners = load_starter(), extended, concatenated
        cases = [*zip(aligners, aligners, strict=True), (pipeline, pipeline[-1])]
        for estimator, aligner in cases:
            maps, _ = compute_similarity_maps(estimator, images[:4], texts)
            expected = estimator.transform(images[:4]) @ aligner.transform_text(texts).T
            np.testing.assert_allclose(maps.mean(axis=(2, 3)), expected, atol=2e-3)

    @pytest.mark.exhaustive
    def test_peak_is_where_the_object_was_pasted(self):
        """An emoji is pasted into a quadrant of a drawing of another kind, 100 times."""
        data = load_openmoji()
        kinds = data.subcategories
        rng = np.random.default_rng(0)
        rows = [
            row
            for row, kind in enumerate(kinds)
            if kind in ("animal-mammal", "food-fruit", "transport-ground", "clothing")
        ]
        n_hits = 0
        for _ in range(4):
            images, texts, quadrants = [], [], []
            for _ in range(25):
                row = rng.choice(rows)
                others = [other for other in rows if kinds[other] != kinds[row]]
                canvas = Image.open(data.images[rng.choice(others)]).convert("RGB")
                canvas = canvas.resize((224, 224))
                quadrant = rng.integers(2, size=2)
                pasted = Image.open(data.images[row]).convert("RGB").resize((112, 112))
                canvas.paste(pasted, (int(112 * quadrant[1]), int(112 * quadrant[0])))
                images.append(np.asarray(canvas))
                texts.append(data.captions[row])
                quadrants.append(quadrant.tolist())
            maps, _ = compute_similarity_maps(None, images, texts)
            for number, quadrant in enumerate(quadrants):
                values = maps[number, number]
                peak = np.unravel_index(values.argmax(), values.shape)
                n_hits += [position // 7 for position in peak] == quadrant
        assert n_hits >= 90

    def test_unsupported_aligners_raise(self, captioned_images, image_encoder, text_encoder):
        images, captions = captioned_images.images[:30], captioned_images.captions[:30]
        parts = {"image_encoder": image_encoder, "text_encoder": text_encoder}
        nonlinear = APEAligner(
            init=None, side="both", width=16, max_epochs=2, random_state=0, **parts
        ).fit(images, captions)
        with pytest.raises(ValueError, match="by a nonlinear head"):
            compute_similarity_maps(nonlinear, images[:1], ["a cat"])
        with pytest.raises(TypeError, match="is not a head"):
            compute_similarity_maps(
                CCAAligner(**parts).fit(images, captions), images[:1], ["a cat"]
            )
        with pytest.raises(NotFittedError, match="APEAligner"):
            compute_similarity_maps(APEAligner(**parts), images[:1], ["a cat"])
        on_features = KernelAligner().fit(np.eye(5), np.eye(5))
        with pytest.raises(TypeError, match="has no grid of features"):
            compute_similarity_maps(on_features, images[:1], ["a cat"])
        with pytest.raises(ValueError, match="single text"):
            compute_similarity_maps(None, images[:1], "a cat")
        with pytest.raises(ValueError, match="images is empty"):
            compute_similarity_maps(None, [], ["a cat"])
        with pytest.raises(ValueError, match="images is a single image, not a sequence"):
            compute_similarity_maps(None, "cat.png", ["a cat"])
        with pytest.raises(ValueError, match="texts is empty"):
            compute_similarity_maps(None, images[:1], [])
        for text in (None, ["a cat", "a pet"]):  # two texts would have two maps
            with pytest.raises(ValueError, match=r"which is not a text\. Pass one str"):
                compute_similarity_maps(None, images[:1], ["a dog", text])


class TestDisplay:
    def test_panels(self, captioned_images):
        texts = ["a cat", "$food_"]
        display = SimilarityMapDisplay.from_estimator(None, captioned_images.images[0], texts)
        assert len(display.axes_) == 3
        assert len(display.ims_) == 2
        limits = {im.get_clim() for im in display.ims_}
        assert len(limits) == 1
        low, high = limits.pop()
        assert low == -high
        display.figure_.canvas.draw()
