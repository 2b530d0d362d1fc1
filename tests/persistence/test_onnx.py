"""Heads as ONNX: the same embeddings in ONNX Runtime, or no file."""

import numpy as np
import pytest
from sklearn.base import clone

from sklearn_ape import APEAligner, ASIFAligner
from sklearn_ape.aligners import export_onnx
from sklearn_ape.heads import KernelMap
from tests.persistence.conftest import ALIGNERS

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


@pytest.mark.parametrize(
    "name", ["cca", "kernel", "ape-residual-of-kernel", "ape-batchnorm", "ape-linear-start"]
)
def test_onnxruntime_gives_the_same_embeddings(name, concepts, tmp_path):
    aligner = clone(ALIGNERS[name]).fit(concepts.image, concepts.text)
    export_onnx(aligner, tmp_path / "heads")
    for side, features, embed in (
        ("image", concepts.image, aligner.transform),
        ("text", concepts.text, aligner.transform_text),
    ):
        session = onnxruntime.InferenceSession(tmp_path / "heads" / f"{side}_head.onnx")
        for rows in (features, features[:1]):
            found = session.run(["embeddings"], {"features": rows})[0]
            np.testing.assert_allclose(found, embed(rows), atol=1e-5)
    assert len(list((tmp_path / "heads").iterdir())) == 2


def test_other_numbers_are_refused_and_nothing_is_written(concepts, tmp_path, monkeypatch):
    aligner = clone(ALIGNERS["kernel"]).fit(concepts.image, concepts.text)
    monkeypatch.setattr(aligner, "_embed_text", lambda rows: np.ones((len(rows), 6)))
    with pytest.raises(ValueError, match="differ from the aligner"):
        export_onnx(aligner, tmp_path)
    assert not list(tmp_path.iterdir())


def test_aligners_without_heads_are_refused(concepts, tmp_path):
    with pytest.raises(TypeError, match="not ASIFAligner"):
        export_onnx(ASIFAligner().fit(concepts.image, concepts.text), tmp_path)


def test_tiles_of_a_kernel_leave_an_export_as_it_is(concepts, tmp_path, monkeypatch):
    """In Python rows are mapped some at a time; a graph must not depend on how many."""
    monkeypatch.setattr("sklearn_ape.heads._closed_form._KERNEL_VALUES_AT_ONCE", 1000)
    aligner = APEAligner(init="kernel", width=8, max_epochs=1, early_stopping=False)
    aligner.fit(concepts.image, concepts.text)
    assert isinstance(aligner.module_.text_head.base, KernelMap)
    export_onnx(aligner, tmp_path)
    session = onnxruntime.InferenceSession(tmp_path / "text_head.onnx")
    found = session.run(None, {"features": concepts.text})[0]
    np.testing.assert_allclose(found, aligner.transform_text(concepts.text), atol=1e-5)
