"""The only classes that a file may name."""

from __future__ import annotations

from importlib import import_module

# By name, so that this floor knows none of them, and what a file asks for is looked up here alone.
CLASSES = {
    **dict.fromkeys(
        (
            "APEAligner",
            "ASIFAligner",
            "CCAAligner",
            "CLIPAligner",
            "KernelAligner",
            "LiTAligner",
        ),
        "sklearn_ape.aligners",
    ),
    **dict.fromkeys(
        (
            "HeadPairs",
            "OpenCLIPImageEncoder",
            "OpenCLIPTextEncoder",
            "TimmImageEncoder",
            "TransformersImageEncoder",
            "TransformersTextEncoder",
        ),
        "sklearn_ape.encoders",
    ),
    "CrossModalRetriever": "sklearn_ape.retrieval",
    "MultiLabelZeroShotClassifier": "sklearn_ape.multilabel",
    "ZeroShotClassifier": "sklearn_ape.zero_shot",
}


def class_named(name: object) -> type:
    """Return a class that files may name.

    Raises
    ------
    ValueError
        When they may not.
    """
    if not isinstance(name, str) or name not in CLASSES:
        raise ValueError(
            f"The model names the class {str(name)[:80]!r}, which is none of "
            f"{', '.join(sorted(CLASSES))}. It may come from a newer version: "
            "pip install --upgrade sklearn-ape."
        )
    found = getattr(import_module(CLASSES[name]), name)
    assert isinstance(found, type)
    return found


def is_recordable(value: object) -> bool:
    """Say whether an object is of one of the classes, and not of a subclass of one's own."""
    name = type(value).__name__
    return name in CLASSES and class_named(name) is type(value)
