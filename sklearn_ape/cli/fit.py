"""The command ``sklearn-ape fit``."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import typer

from ..utils.files import expand_user
from . import _inputs as option
from ._inputs import load_data, parse_labels, resolve_label_names
from ._output import check_model_folder, print_loading, print_message, resolve_format

_Method = Literal["auto", "few-shot", "extend", "ape", "kernel", "cca", "asif", "lit"]
_CLOSED_FORM = ("kernel", "cca", "asif")
_METHODS_WITH_OPTION = {
    "--aligner": ("few-shot", "extend"),
    "--depth": ("ape",),
    "--head-pairs": ("ape", *_CLOSED_FORM),
    "--checkpoint": ("ape", "lit"),
    "--image-encoder": ("ape", *_CLOSED_FORM, "lit"),
    "--text-encoder": ("ape", *_CLOSED_FORM, "lit"),
}


def fit(
    data: option.Data,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder in which the model is saved.")
    ],
    method: Annotated[
        _Method,
        typer.Option(
            metavar="KIND",
            help="few-shot learns labels. For captions: extend (the starter model), or a new "
            "aligner: ape, kernel, cca, asif or lit.",
        ),
    ] = "auto",
    aligner: option.Aligner = None,
    depth: Annotated[
        int | None, typer.Option(min=1, help="Layers of the head (ape). Default: 3.")
    ] = None,
    head_pairs: Annotated[
        bool,
        typer.Option(help="Also train on the image encoder's class names.", show_default=False),
    ] = False,
    image_encoder: option.ImageEncoder = option.DEFAULT_IMAGE_ENCODER,
    text_encoder: option.TextEncoder = option.DEFAULT_TEXT_ENCODER,
    image: option.ImageColumn = "image",
    caption: option.CaptionColumn = "caption",
    label: option.LabelColumn = None,
    captions: option.Captions = "auto",
    labels: option.Labels = None,
    labels_file: option.LabelsFile = None,
    templates: option.Templates = option.DEFAULT_TEMPLATES,
    test_size: Annotated[
        float, typer.Option(min=0, max=0.9, help="Fraction held out for evaluation; 0: none.")
    ] = 0.2,
    refit: Annotated[bool, typer.Option(help="At the end, fit on all images.")] = True,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Folder to resume interrupted training (ape, lit).")
    ] = None,
    random_state: option.RandomState = 0,
    strict: option.Strict = False,
    file_format: option.PrintedFormat = None,
    cache: option.Cache = None,
    device: option.Device = "auto",
    n_jobs: option.NJobs = -1,
    quiet: option.Quiet = False,
) -> None:
    """Train on your own images, and test on held-out ones.

    Images with captions extend the starter model. Images with labels only, such as the names of
    subfolders, train a few-shot classifier.

    Example: sklearn-ape fit photos/ -o my-model
    """
    print_loading(quiet)
    from ..zero_shot import ZeroShotClassifier
    from . import _models

    options = _models.RuntimeOptions(cache, device, n_jobs, quiet)
    file_format = resolve_format(None, file_format)
    check_model_folder(output, "Aligner", "FewShotClassifier", "ZeroShotClassifier")
    names = parse_labels(labels, labels_file)
    if depth is not None and method == "auto":
        method = "ape"
    is_set = {
        "--aligner": aligner is not None,
        "--depth": depth is not None,
        "--head-pairs": head_pairs,
        "--checkpoint": checkpoint is not None,
        "--image-encoder": image_encoder != option.DEFAULT_IMAGE_ENCODER,
        "--text-encoder": text_encoder != option.DEFAULT_TEXT_ENCODER,
    }
    set_options = [name for name, value in is_set.items() if value]
    if method != "auto":  # before the data are loaded
        _check_options(method, set_options)
    if checkpoint is not None:
        _prepare_checkpoint(checkpoint, output)
    bunch = load_data(data, captions, strict, quiet, image=image, caption=caption, label=label)
    if method == "auto":
        method = _choose_method(bunch, set_options)
        _check_options(method, set_options)
    if method == "few-shot":
        _check_has_labels(bunch, data)
        check_model_folder(output, "FewShotClassifier", has_starter=aligner is None)
        task = _make_few_shot_task(bunch, names, aligner, templates, options)
    else:
        if label is not None and bunch.captions is not None:
            note = f"Column {label!r} is not used. Set --method few-shot to learn labels."
            print_message(note, quiet)
        _use_labels_as_captions(bunch, data, names, quiet)
        on_error = "raise" if strict else "nan"
        base = None
        # The packages of the starter model may be missing if other encoders are used.
        if not (is_set["--image-encoder"] or is_set["--text-encoder"]):
            base = _models.load_aligner(aligner, options)
        base_name = "starter model" if aligner is None else "not extended"
        if method == "extend":
            unfitted = _make_extension(base, options, on_error)
        else:
            encoder = _models.make_image_encoder(image_encoder, options, on_error=on_error)
            params: dict[str, Any] = {"head_pairs": encoder} if head_pairs else {}
            if depth is not None:
                params["depth"] = depth
            if method in ("ape", "lit"):
                params |= {"random_state": random_state, "checkpoint": checkpoint}
                params |= {"device": device, "verbose": int(not quiet)}
            unfitted = _make_aligner(method, encoder, text_encoder, options, params)
        kind = "Aligner" if names is None else "ZeroShotClassifier"
        has_starter = method == "extend" and aligner is None
        check_model_folder(output, kind, has_starter=has_starter)  # before images are encoded
        task = _make_alignment_task(bunch, names, unfitted, base, base_name, templates, options)
    split = _models.split_rows(task.features, task.y, test_size, random_state, task.classes, quiet)
    if split is None and test_size and method == "extend" and _has_repeated_captions(bunch, task):
        print_message("To learn the labels and evaluate them, set --method few-shot.", quiet)
    scores, others, n_fitted = _fit_and_score(task, split, refit)
    model = task.model
    if method != "few-shot" and names is not None:
        model = ZeroShotClassifier(names, aligner=model, templates=templates)
    card = {_models.make_card_label(score): score.value for score in scores}
    model.save_pretrained(output, scores=card)
    if scores:
        _models.print_scores([*scores, *others], file_format, "held-out images or captions")
        if method == "few-shot" and others[0].value <= 1 / len(model.classes_):
            _suggest_other_names(others[0].value, task.y[0], labels_file is not None, quiet)
    saved = f"Saved in {str(output)!r}, which other commands use as --aligner."
    print_message(f"Fitted on {n_fitted:,} images. {saved}", quiet)


def _check_options(method: str, options: list[str]) -> None:
    """Raise an error if an option has no effect with the method."""
    for name in options:
        if method not in _METHODS_WITH_OPTION[name]:
            methods = ", ".join(_METHODS_WITH_OPTION[name])
            raise typer.BadParameter(
                f"has no effect with --method {method}. Remove it, or use one of the methods "
                f"{methods}.",
                param_hint=name,
            )


def _choose_method(bunch: Any, options: list[str]) -> _Method:
    """Return the method for the data, given the options that were set."""
    if bunch.captions is None and "labels" in bunch:
        return "few-shot"
    # The options other than --aligner are for new aligners.
    return "extend" if set(options) <= {"--aligner"} else "ape"


def _prepare_checkpoint(folder: Path, output: Path) -> None:
    from ..aligners.checkpoint import prepare_folder

    if expand_user(folder).resolve() == expand_user(output).resolve():
        raise typer.BadParameter(
            "is the folder of --output. Pass another folder.", param_hint="--checkpoint"
        )
    prepare_folder(folder)


def _suggest_other_names(accuracy: float, label: str, has_file: bool, quiet: bool) -> None:
    """Report that names alone are no better than guessing; `label` is the one in the example."""
    key = json.dumps(label, ensure_ascii=False)
    example = "" if has_file else f' labels.json with {{{key}: "a name", ...}}'
    print_message(
        f"The names alone classify {100 * accuracy:.0f} % of the held-out images correctly, which "
        "is not better than guessing. Describe the classes by other names in "
        f"--labels-file{example}.",
        quiet,
    )


def _has_repeated_captions(bunch: Any, task: _Task) -> bool:
    """Return whether there are labels, and captions that repeat as labels do."""
    from ..aligners.pairs import flatten_captions

    texts = flatten_captions(task.y)[0]
    return "labels" in bunch and task.classes is None and len(texts) >= 2 * len(set(texts))


def _check_has_labels(bunch: Any, data: Path) -> None:
    if "labels" not in bunch:
        raise ValueError(
            f"{str(data)!r} has no labels. Put every image in a subfolder whose name is its "
            "label, or pass a table and --label with its column of labels."
        )


class _Task(NamedTuple):
    """A model to fit, its data, and a function that scores it, given training and test rows.

    The function also returns the scores of models that it is compared with. `y` are captions or
    labels. `classes` stratify the split, if they are not None.
    """

    model: Any
    images: list[Any]
    features: Any
    y: list[Any]
    classes: list[str] | None
    score: Callable[[Any, Any], tuple[list[Any], list[Any]]]


def _make_few_shot_task(
    bunch: Any, names: Any, source: str | None, templates: str, options: Any
) -> _Task:
    """Encode the images, and return the task to fit a few-shot classifier on them."""
    from sklearn.linear_model import LogisticRegression

    from ..zero_shot import FewShotClassifier, ZeroShotClassifier
    from . import _models

    y = [str(label) for label in bunch.labels]
    names = resolve_label_names(names, y)
    aligner = _models.load_aligner(source, options)
    encoder = _models.get_image_encoder(aligner)
    encoded = _models.encode_images(encoder, bunch.images, options)
    # A table has one row per caption. An image is used once per label.
    first_rows: dict[Any, int] = {}
    readable = encoded.readable_rows
    keys = _models.identify_images([bunch.images[row] for row in readable])
    for row, key in zip(readable, keys, strict=True):
        first_rows.setdefault((key, y[row]), row)
    rows = list(first_rows.values())
    images, y = [bunch.images[row] for row in rows], [y[row] for row in rows]
    features = encoded.features[rows]
    _check_labels_agree(features, images, rows, y)
    classifier = FewShotClassifier(names, aligner=aligner, templates=templates)

    def score(train: Any, test: Any) -> tuple[list[Any], list[Any]]:
        held_out = [images[row] for row in test]
        by_names = ZeroShotClassifier(names, aligner=aligner, templates=templates)
        regression = LogisticRegression(max_iter=1000)
        regression.fit(features[train], [y[row] for row in train])
        predictions = {
            "few-shot": classifier.predict(held_out),
            "names alone": by_names.predict(held_out),
            "LogisticRegression": regression.predict(features[test]),
        }
        y_test = [y[row] for row in test]
        own, *others = (
            _models.make_score("accuracy", name, labels == y_test)
            for name, labels in predictions.items()
        )
        return [own], others

    return _Task(classifier, images, features, y, y, score)


def _check_labels_agree(features: Any, images: list[Any], rows: list[int], y: list[str]) -> None:
    """Raise an error if an image has different labels.

    The classifier would check the training part only, and name rows of this part.
    """
    from ..aligners.fitted_images import find_label_conflicts, group_equal_images
    from ..utils.validation import format_list

    def describe(position: int) -> str:
        image = images[position]
        place = f"for {image!r}" if isinstance(image, str) else f"in row {rows[position]} (from 0)"
        return f"{y[position]!r} {place}"

    conflicts = find_label_conflicts(group_equal_images(features), y)
    if conflicts:
        subject = "An image has" if len(conflicts) == 1 else f"{len(conflicts):,} images have"
        pairs = format_list(conflicts, lambda pair: " and ".join(map(describe, pair)))
        raise ValueError(
            f"{subject} different labels: {pairs}. Correct the labels, or remove the wrong images."
        )


def _use_labels_as_captions(bunch: Any, data: Path, names: Any, quiet: bool) -> None:
    """Set the names of classes as captions if there are no captions, and `from_labels`."""
    from ..datasets.base import name_folder
    from ..prompts import resolve_class_names

    bunch.from_labels = bunch.captions is None
    if bunch.from_labels:
        if "labels" not in bunch:
            raise ValueError(
                f"{str(data)!r} has no captions. Write photo.txt next to photo.jpg, put every "
                "image in a subfolder whose name describes it, or set --captions filename if "
                "the file names describe the images."
            )
        bunch.captions = [name_folder(label) for label in bunch.labels]
        if names is not None:
            names_by_label = resolve_class_names(resolve_label_names(names, bunch.labels))
            first_name = {str(label): texts[0] for label, texts in names_by_label.items()}
            bunch.captions = [first_name[str(label)] for label in bunch.labels]
        if len(set(bunch.captions)) < 2:
            raise ValueError(
                f"{str(data)!r} has a single subfolder and no captions, so all captions would be "
                "equal. Write captions, or add subfolders."
            )
        source = "subfolders" if names is None else "classes"
        print_message(
            f"There are no captions. The names of the {source} are used as captions.", quiet
        )


def _make_aligner(
    method: str, image_encoder: Any, text_encoder: str, options: Any, params: dict[str, Any]
) -> Any:
    from ..aligners import APEAligner, ASIFAligner, CCAAligner, KernelAligner, LiTAligner
    from ..encoders import TransformersTextEncoder
    from ._models import make_text_encoder

    texts = make_text_encoder(text_encoder, options)
    if method == "lit" and not isinstance(texts, TransformersTextEncoder):
        raise typer.BadParameter(
            f"{text_encoder!r} cannot be trained. --method lit needs a text encoder of "
            "transformers.",
            param_hint="--text-encoder",
        )
    aligners: dict[str, Any] = {"ape": APEAligner, "kernel": KernelAligner, "cca": CCAAligner}
    aligners |= {"asif": ASIFAligner, "lit": LiTAligner}
    return aligners[method](image_encoder=image_encoder, text_encoder=texts, **params)


def _make_extension(base: Any, options: Any, on_error: str) -> Any:
    """Return an aligner, not fitted, that extends another one."""
    from sklearn.base import clone

    from ..aligners import APEAligner, KernelAligner
    from ..aligners.wrapper import unwrap_aligner
    from ..encoders.base import FrozenEncoder
    from . import _models

    inner = unwrap_aligner(base)
    if not isinstance(inner, APEAligner | KernelAligner):
        raise typer.BadParameter(
            f"the aligner is a {type(inner).__name__}, but captions can only extend an APEAligner "
            "or a KernelAligner. To train a new aligner, set --method kernel, --image-encoder and "
            "--text-encoder. To learn labels with this aligner, set --captions none.",
            param_hint="--aligner",
        )
    verbose = int(not options.quiet)
    encoder = _models.get_image_encoder(base).set_params(on_error=on_error)
    texts = getattr(inner, "text_encoder_", None)
    if isinstance(texts, FrozenEncoder):  # thousands of captions need a progress bar
        texts = clone(texts).set_params(verbose=verbose)
    return APEAligner(
        init=base,
        image_encoder=encoder,
        text_encoder=texts,
        device=options.device,
        verbose=verbose,
    )


def _make_alignment_task(
    bunch: Any, names: Any, aligner: Any, base: Any, base_name: str, templates: str, options: Any
) -> _Task:
    """Encode the images, and return the task to fit an aligner on them and their captions.

    Its recall is compared with that of the fitted aligner `base`, unless this is None.
    """
    from ..encoders.images import group_images
    from ..zero_shot import ZeroShotClassifier
    from . import _models

    encoded = _models.encode_images(aligner.image_encoder, bunch.images, options)
    rows = encoded.readable_rows
    features = encoded.features[rows]
    images, texts = ([side[row] for row in rows] for side in (bunch.images, bunch.captions))
    classes = None
    if bunch.from_labels:
        classes = [str(bunch.labels[row]) for row in rows]
        names = resolve_label_names(names, classes)
    aligner.image_encoder.set_params(on_error="raise")

    def score(train: Any, test: Any) -> tuple[list[Any], list[Any]]:
        held_out = [images[row] for row in test]
        if classes is None:
            captions, groups = [texts[row] for row in test], group_images(held_out)
            _models.warn_about_few_pairs(captions, groups)
            scores = _models.score_recall(aligner, held_out, captions, groups)
            if base is None:
                return scores, []
            return scores, _score_base(base, base_name, held_out, captions, groups, scores)
        classifier = ZeroShotClassifier(names, aligner=aligner, templates=templates)
        predicted = [str(label) for label in classifier.predict(held_out)]
        return _models.score_accuracy([classes[row] for row in test], predicted), []

    return _Task(aligner, images, features, texts, classes, score)


def _score_base(
    base: Any, name: str, images: list[Any], captions: list[Any], groups: Any, own: list[Any]
) -> list[Any]:
    """Return the recall of a fitted aligner.

    Warn if it was fitted on some of the images, or if its recall is higher than the `own` scores.
    """
    from ..aligners.wrapper import unwrap
    from ._models import score_recall

    preprocessing, inner = unwrap(base)
    inputs = images if preprocessing is None else preprocessing.transform(images)
    if n_seen := int(inner.was_fitted_on(inputs).sum()):
        print_message(
            f"sklearn-ape: Warning: {n_seen:,} of {len(images):,} held-out images were used to "
            f"fit the aligner of the rows {name!r}, so recall is too high."
        )
    scores = score_recall(inner, inputs, captions, groups, name)
    if sum(score.value for score in scores) > sum(score.value for score in own):
        print_message(
            f"sklearn-ape: Warning: The mean recall of the rows {name!r} is higher than that of "
            "the aligner that is saved."
        )
    return scores


def _fit_and_score(
    task: _Task, split: tuple[Any, Any] | None, refit: bool
) -> tuple[list[Any], list[Any], int]:
    """Fit the model of a task; return what its function returns, and the number of images."""
    from ._models import identify_images

    model, images, y = task.model, task.images, task.y
    keys = identify_images(images)
    scores: list[Any] = []
    others: list[Any] = []
    if split is not None:
        train, test = split
        _fit_completely(model, [images[row] for row in train], [y[row] for row in train])
        scores, others = task.score(train, test)
        if not refit:
            return scores, others, len({keys[row] for row in train})
    _fit_completely(model, images, y)
    return scores, others, len(set(keys))


def _fit_completely(model: Any, images: list[Any], y: list[Any]) -> None:
    """Fit a model; raise KeyboardInterrupt also where `fit` would use the epochs so far."""
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        try:
            model.fit(images, y)
        except ConvergenceWarning:
            raise KeyboardInterrupt from None
