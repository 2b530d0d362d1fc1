"""Encoders, aligners, inference over many images, and evaluation for the commands."""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import typer
from sklearn.base import BaseEstimator
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import train_test_split
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.utils import check_random_state, gen_batches

from ..aligners import CLIPAligner
from ..aligners.pairs import flatten_captions
from ..aligners.wrapper import AlignerWrapperMixin, get_wrapped_aligner, resolve_aligner
from ..datasets import get_data_home
from ..encoders import EncodingFailedWarning, OpenCLIPImageEncoder, TimmImageEncoder, list_encoders
from ..encoders.base import FrozenEncoder
from ..encoders.image_encoder import ImageEncoder
from ..encoders.images import group_images
from ..encoders.resolve import split_class_and_model
from ..encoders.text_encoder import TextEncoder
from ..features import DiskFeatureCache
from ..metrics import bootstrap_interval
from ..training import split_pairs
from ..utils.files import check_writable, expand_user
from ..utils.messages import advance_within_block, make_progress_bar
from ..utils.validation import format_list, number_distinct
from ._inputs import DEFAULT_TEMPLATES, make_absolute
from ._output import Table, note_on_interrupt, print_message

_MEMORY = "memory"

# Images per call of the classifier, so that the first rows are written early.
_BATCH_SIZE = 512
N_ERRORS_SHOWN = 5

# A smaller test set gives no meaningful accuracy.
_MIN_TEST_SIZE = 10

_RECALL_KS = (1, 5, 10)
_DIRECTIONS = {"image_to_text": "image to caption", "text_to_image": "caption to image"}


class RuntimeOptions(NamedTuple):
    """Options that do not change results: cache, device, threads and verbosity."""

    cache: str | None = None
    device: str = "auto"
    n_jobs: int = -1
    quiet: bool = False

    @property
    def cache_folder(self) -> str:
        """Folder of the feature cache, or "memory"."""
        if self.cache is None:
            return _find_default_cache(get_data_home() / "features")
        if self.cache == _MEMORY:
            return self.cache
        folder = expand_user(self.cache)
        if folder.is_file():
            raise NotADirectoryError(f"--cache {self.cache!r} is a file. Pass a folder.")
        return str(folder)

    def get_encoder_params(self, on_error: str) -> dict[str, Any]:
        """Return the parameters for an encoder."""
        return {
            "cache": self.cache_folder,
            "device": self.device,
            "n_jobs": self.n_jobs,
            "on_error": on_error,
            "verbose": int(not self.quiet),
        }

    @property
    def resume_note(self) -> str:
        """Message after Ctrl-C: what is stored and how to resume."""
        if self.cache_folder == _MEMORY:
            return "No features are stored, because --cache is 'memory'."
        return f"Finished features are in {self.cache_folder!r}. Run the command again to resume."


@cache
def _find_default_cache(folder: Path) -> str:
    """Return the folder, or "memory", with a message, if no cache can be created in it.

    In containers and services, the home folder is often read-only or missing.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not DiskFeatureCache(folder).path.exists():
            check_writable(folder)
    except OSError as error:
        print_message(
            f"sklearn-ape: Warning: Features are not stored, because {str(folder)!r} cannot be "
            f"written ({error.strerror}). Set --cache to a writable folder to store them."
        )
        return _MEMORY
    return str(folder)


def make_image_encoder(
    name: str, options: RuntimeOptions, *, pooling: str | None = None, on_error: str = "nan"
) -> Any:
    """Return the image encoder of a name such as "efficientnet_lite0" or "open_clip:RN50/openai".

    Without `pooling`, packaged networks are used as in the starter model: whole images on a
    white background, and pooling by the generalized mean.
    """
    encoder_class, model_name = split_class_and_model(name, "image")
    params = options.get_encoder_params(on_error)
    is_packaged = any(info.name == model_name for info in list_encoders("image"))
    if encoder_class is TimmImageEncoder and is_packaged:
        params |= {"pooling": "gem", "crop": "pad"}
    if pooling is not None:
        if encoder_class is OpenCLIPImageEncoder:
            raise ValueError(
                f"--pooling {pooling} is not supported by OpenCLIP encoders. Remove --pooling."
            )
        params["pooling"] = pooling
    encoder = encoder_class(model_name, **params)
    encoder._check_parameters()
    return encoder


def make_text_encoder(name: str, options: RuntimeOptions) -> Any:
    """Return the text encoder of a name such as "all-MiniLM-L6-v2"."""
    encoder_class, model_name = split_class_and_model(name, "text")
    params = options.get_encoder_params("raise")
    del params["n_jobs"]
    encoder = encoder_class(model_name, **params)
    encoder._check_parameters()
    return encoder


def load_aligner(source: str | None, options: RuntimeOptions) -> Any:
    """Return a fitted aligner, or a Pipeline that ends in one; see `load_model`."""
    return extract_aligner(load_model(source, options))


def extract_aligner(model: Any) -> Any:
    """Return the aligner of a loaded model: the model itself, or that of a classifier, ..."""
    try:
        aligner = get_wrapped_aligner(model)
    except TypeError:
        raise ValueError(
            f"--aligner is a {type(model).__name__}, not an aligner. Pass the folder of a "
            "saved aligner, classifier or index."
        ) from None
    if isinstance(aligner, CLIPAligner):
        # As a separate step, the image encoder reports the images that it cannot read.
        aligner = make_pipeline(aligner.image_encoder, aligner)
    get_image_encoder(aligner)
    return aligner


def load_model(source: str | None, options: RuntimeOptions) -> Any:
    """Return a saved estimator of any kind, with the options for its encoders.

    The source None is the starter model, "open_clip:..." a CLIP model, and any other name a folder
    or a Hub id.
    """
    if source is None or source.startswith("open_clip:"):
        # A copy, as below, because the aligner is shared within the process.
        return _set_options(copy.deepcopy(resolve_aligner(source)), options)
    is_folder = os.path.isdir(os.path.expanduser(source))
    if not is_folder and (source.count("/") != 1 or source.startswith((".", "~", "/"))):
        raise FileNotFoundError(
            f"{source!r} is not a folder. Pass a folder that 'sklearn-ape fit' or 'sklearn-ape "
            "index' has written, or owner/name of a model on the Hub."
        )
    from ..persistence import load_pretrained

    model = load_pretrained(source)
    for estimator in _iter_estimators(model):
        is_wrapper = isinstance(estimator, AlignerWrapperMixin)
        if is_wrapper and isinstance(estimator.aligner, str | None):
            aligner = copy.deepcopy(extract_aligner(estimator))
            if hasattr(estimator, "aligner_"):
                estimator.aligner_ = aligner
                estimator._note_fit()
            else:
                estimator.aligner = aligner
    return _set_options(model, options)


def get_image_encoder(model: Any) -> Any:
    """Return the image encoder of a fitted model."""
    for estimator in _iter_estimators(model):
        if isinstance(estimator, ImageEncoder):
            return estimator
    raise ValueError(
        "The model has no image encoder, because its aligner was fitted on features. Save the "
        "Pipeline of the image encoder and the aligner."
    )


def _set_options(model: Any, options: RuntimeOptions) -> Any:
    """Set the options of all encoders and CLIP models in a model, in place."""
    for estimator in _iter_estimators(model):
        parameters = estimator.get_params(deep=False)
        if isinstance(estimator, FrozenEncoder | CLIPAligner):
            is_text = isinstance(estimator, TextEncoder)
            params = options.get_encoder_params("raise" if is_text else "nan")
            if is_text:  # a few labels do not need a progress bar
                params["verbose"] = 0
            estimator.set_params(**{k: v for k, v in params.items() if k in parameters})
        elif "device" in parameters:
            estimator.set_params(device=options.device)
    return model


def _iter_estimators(model: Any) -> Iterator[Any]:
    """Yield the estimators of a fitted model in the order in which data pass through them."""
    if isinstance(model, Pipeline):
        for _, step in model.steps:
            yield from _iter_estimators(step)
    elif isinstance(model, FrozenEstimator):
        yield from _iter_estimators(model.estimator)
    elif isinstance(model, BaseEstimator):
        yield model
        for name in ("image_encoder_", "text_encoder_", "aligner_", "aligner"):
            yield from _iter_estimators(vars(model).get(name))


def select_classifier(
    model: Any, names: Any, templates: str, source: str | None, quiet: bool
) -> Any:
    """Return a loaded model if it is a classifier and --labels has no names, otherwise None."""
    from ..zero_shot import FewShotClassifier, MultiLabelZeroShotClassifier, ZeroShotClassifier

    if names is not None:
        if isinstance(model, FewShotClassifier):
            print_message(
                "The names of --labels are used without the labelled images of the model. Remove "
                "--labels to use its classes.",
                quiet,
            )
        return None
    if isinstance(model, MultiLabelZeroShotClassifier):  # not to be used as a mere aligner
        raise typer.BadParameter(
            f"{source!r} is a multi-label classifier, which commands cannot use. Use Python: "
            f"load_pretrained({source!r}).predict_sets(images).",
            param_hint="--aligner",
        )
    if not isinstance(model, ZeroShotClassifier):
        return None
    if templates != DEFAULT_TEMPLATES:
        raise typer.BadParameter(
            f"{templates!r} has no effect, because {source!r} is a classifier with templates of "
            "its own. Remove --templates, or set --labels.",
            param_hint="--templates",
        )
    return model


def iter_probabilities(
    classifier: Any, images: Sequence[Any], options: RuntimeOptions, together: bool
) -> Iterator[tuple[slice, np.ndarray, dict[int, str]]]:
    """Classify images in batches, or `together` in one batch.

    Yields the rows of each batch, the probabilities of its images, and the problems of its
    unreadable images by their row within the batch.
    """
    encoder = get_image_encoder(classifier)
    size = len(images) if together else _BATCH_SIZE
    is_one_batch = len(images) <= size
    if not is_one_batch:  # one bar over all batches replaces the bars of the encoder
        encoder.verbose = 0
    predict_proba = classifier.predict_proba_together if together else classifier.predict_proba
    is_shown = not (options.quiet or is_one_batch)
    bar = make_progress_bar(len(images), int(is_shown), delay=0, unit="image")
    with note_on_interrupt(options.resume_note), ignore_unreadable(), bar:
        for rows in gen_batches(len(images), size):
            # Only here, because the consumer of a generator shares its context.
            with advance_within_block(bar, "image"):
                probabilities = predict_proba(images[rows])
            yield rows, probabilities, encoder.errors_
            bar.update(rows.stop - bar.n)


class EncodedImages(NamedTuple):
    """Features of images, with NaN for unreadable images, and their problems by row."""

    features: np.ndarray
    errors: dict[int, str]

    @property
    def readable_rows(self) -> list[int]:
        """Rows of the readable images."""
        return [row for row in range(len(self.features)) if row not in self.errors]


def encode_images(
    encoder: Any, images: Sequence[Any], options: RuntimeOptions, may_be_empty: bool = False
) -> EncodedImages:
    """Encode images and report unreadable ones; raise if all are, unless `may_be_empty`."""
    with note_on_interrupt(options.resume_note), ignore_unreadable():
        features = encoder.transform(images)
    errors = {  # the images of a parquet table may be bytes, whose errors do not name them
        row: error if isinstance(images[row], str) else f"row {row} (the first is 0): {error}"
        for row, error in encoder.errors_.items()
    }
    if errors:
        # A table has one row per caption. An image is counted and reported once.
        keys = identify_images(images)
        n_images = len(set(keys))
        if len(errors) == len(images) and not may_be_empty:
            raise ValueError(f"None of the {n_images} images can be read. The first: {errors[0]}")
        report_unreadable({keys[row]: error for row, error in errors.items()}, n_images)
    return EncodedImages(features, errors)


def identify_images(images: Sequence[Any]) -> list[Any]:
    """Return keys of images: rows of a table with the same image have equal keys."""
    is_paths = all(isinstance(image, str) for image in images)
    # "cat.jpg" and "./cat.jpg" are the same image.
    return list(map(make_absolute, images)) if is_paths else group_images(images).tolist()


@contextmanager
def ignore_unreadable() -> Iterator[None]:
    """Ignore warnings about unreadable images; see `report_unreadable`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EncodingFailedWarning)
        # Pillow's do not name the file, which is read in spite of damaged metadata, or reported.
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


def report_unreadable(errors: Mapping[Any, str], n_images: int) -> None:
    """Print the number of unreadable images and the first of them to standard error."""
    if not errors:
        return
    print_message(f"Skipped {len(errors):,} of {n_images:,} images, which cannot be read:")
    for error in list(errors.values())[:N_ERRORS_SHOWN]:
        print_message(f"  {error}")
    if len(errors) > N_ERRORS_SHOWN:
        print_message(f"  and {len(errors) - N_ERRORS_SHOWN:,} more.")


def split_rows(
    features: np.ndarray,
    captions: Sequence[Any],
    test_size: float,
    random_state: int,
    classes: Sequence[str] | None,
    quiet: bool,
) -> tuple[np.ndarray, np.ndarray] | None:
    """Return rows for training and rows for testing; None, with a message, if there are too few.

    The parts have no image in common, and no caption unless `classes` stratify the split. Then
    each image occurs once in the rows for testing, and classes with one image do not occur there.
    """
    if not test_size:
        return None
    images = np.unique(features, axis=0, return_inverse=True)[1].ravel()
    if classes is not None:
        return _split_stratified(images, np.asarray(classes), test_size, random_state, quiet)
    texts, rows = flatten_captions(captions)
    pairs = np.column_stack([images[rows], number_distinct(texts)])
    split = split_pairs(pairs, test_size, check_random_state(random_state))
    if split.valid is None:
        print_message(
            "Not evaluated: at least 50 pairs with distinct images and captions are needed for a "
            "held-out test.",
            quiet,
        )
        return None
    return np.unique(rows[split.train]), np.unique(rows[split.valid])


def _split_stratified(
    images: np.ndarray, classes: np.ndarray, test_size: float, random_state: int, quiet: bool
) -> tuple[np.ndarray, np.ndarray] | None:
    """Return what `split_rows` returns for labelled images, given the number of each image."""
    rows = np.unique(images, return_index=True)[1]  # the first row of each distinct image
    labels, counts = np.unique(classes[rows], return_counts=True)
    single_labels = labels[counts < 2].tolist()
    n_classes = len(labels) - len(single_labels)
    if n_classes < 2:
        print_message(
            "Not evaluated: there is only one image of some classes "
            f"({format_list(single_labels)}). Add images.",
            quiet,
        )
        return None
    rows = rows[~np.isin(classes[rows], single_labels)]
    n_test = round(test_size * len(rows))
    n_train = len(rows) - n_test
    min_size = max(_MIN_TEST_SIZE, n_classes)
    if min(n_test, n_train) < min_size:
        print_message(
            f"Not evaluated: --test-size {test_size:g} splits {len(rows)} distinct images into "
            f"{n_train} and {n_test}, and both parts need at least {min_size}. Add images, or "
            "change --test-size.",
            quiet,
        )
        return None
    if single_labels:
        print_message(
            f"Classes with one image ({format_list(single_labels)}) are fitted, but not "
            "evaluated.",
            quiet,
        )
    _, test = train_test_split(
        rows, test_size=n_test, random_state=random_state, stratify=classes[rows]
    )
    # All copies of a test image are left out of the training part.
    return np.flatnonzero(~np.isin(images, images[test])), np.sort(test)


class Score(NamedTuple):
    """A mean over `n` images or captions with its 95 % interval (NaN for fewer than two)."""

    measure: str
    of: str
    value: float
    low: float
    high: float
    n: int


def warn_about_few_pairs(captions: Any, groups: np.ndarray) -> None:
    """Print a warning if recall@k cannot distinguish aligners on so few captions or images."""
    n = min(len(set(flatten_captions(captions)[0])), len(set(groups.tolist())))
    if n <= max(_RECALL_KS):
        print_message(
            f"sklearn-ape: Warning: There are only {n} distinct captions or images to find, "
            f"and recall@k among them is 1 for every aligner from k={n} on. Evaluate on more "
            "pairs."
        )


def score_recall(
    aligner: Any, inputs: Any, captions: Any, groups: np.ndarray, name: str = ""
) -> list[Score]:
    """Return recall@k of an aligner in both directions, with its name if it has one.

    `inputs` are the images, or their features if the aligner takes features.
    """
    ranks = aligner.retrieval_ranks(inputs, captions, groups=groups)
    suffix = f", {name}" if name else ""
    return [
        make_score(f"recall@{k}", direction + suffix, ranks[key] < k)
        for key, direction in _DIRECTIONS.items()
        for k in _RECALL_KS
    ]


def score_accuracy(y_true: Any, y_pred: Any) -> list[Score]:
    """Return the accuracy over all images, followed by the accuracy per class."""
    y_true, y_pred = np.asarray(y_true, dtype=object), np.asarray(y_pred, dtype=object)
    is_correct = y_true == y_pred
    return [make_score("accuracy", "all", is_correct)] + [
        make_score("accuracy", str(name), is_correct[y_true == name])
        for name in sorted(set(y_true))
    ]


def make_card_label(score: Score) -> str:
    """Return the label of a held-out score in the model card."""
    interval = "" if np.isnan(score.low) else f", 95 % CI: {score.low:.3f} to {score.high:.3f}"
    return f"{score.measure} on held-out images, {score.of} (n={score.n}{interval})"


def print_scores(scores: Sequence[Score], file_format: str, test_set: str) -> None:
    """Print scores as a table, one per row, and explain its columns on a terminal."""
    with Table(Score._fields, file_format=file_format) as table:
        for score in scores:
            numbers = (None if np.isnan(x) else round(x, 4) for x in score[2:5])
            table.write([score.measure, score.of, *numbers, score.n])
    if table.file_format == "table":
        print(f"low to high is the 95 % confidence interval. n is the number of {test_set}.")


def make_score(measure: str, of: str, hits: Any) -> Score:
    """Return the mean of hits with its 95 % interval."""
    hits = np.asarray(hits, dtype=float)
    if len(hits) < 2:  # a level of a hierarchy may have no images
        return Score(measure, of, hits[0] if len(hits) else np.nan, np.nan, np.nan, len(hits))
    return Score(measure, of, *bootstrap_interval(hits), len(hits))
