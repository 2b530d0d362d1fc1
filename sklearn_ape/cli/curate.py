"""The command ``sklearn-ape curate``."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..utils.files import expand_user
from . import _inputs as option
from ._inputs import check_replaces_no_input, load_data, make_absolute, parse_labels
from ._output import (
    FileName,
    Table,
    check_output_file,
    note_on_interrupt,
    print_message,
    resolve_format,
)

if TYPE_CHECKING:
    import numpy as np


def curate(
    data: option.Data,
    labels: option.Labels = None,
    labels_file: option.LabelsFile = None,
    n_pairs: Annotated[
        int | None, typer.Option("--n-pairs", "-n", min=1, help="Number of pairs to select.")
    ] = None,
    per_label: Annotated[
        int | None, typer.Option(min=1, help="Maximum number of pairs per label.")
    ] = None,
    min_similarity: Annotated[
        float | None,
        typer.Option(
            min=-1,
            max=1,
            help="Minimum cosine of caption and label, unless the caption contains the label.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Table of the selected pairs, which 'fit' can read. Default: standard output.",
        ),
    ] = None,
    dropped: Annotated[
        Path | None, typer.Option(help="Table of the dropped pairs and the reasons.")
    ] = None,
    noisy: Annotated[
        float,
        typer.Option(min=0, max=1, help="Fraction of pairs to drop whose captions fit worst."),
    ] = 0.05,
    duplicates: Annotated[
        float,
        typer.Option(
            min=0, max=1, help="Cosine above which images are duplicates; 1: identical ones."
        ),
    ] = 0.97,
    image_encoder: option.ImageEncoder = option.DEFAULT_IMAGE_ENCODER,
    text_encoder: option.TextEncoder = option.DEFAULT_TEXT_ENCODER,
    image: option.ImageColumn = "image",
    caption: option.CaptionColumn = "caption",
    captions: option.Captions = "auto",
    templates: option.Templates = option.DEFAULT_TEMPLATES,
    random_state: option.RandomState = 0,
    strict: option.Strict = False,
    file_format: option.Format = None,
    cache: option.Cache = None,
    device: option.Device = "auto",
    n_jobs: option.NJobs = -1,
    quiet: option.Quiet = False,
) -> None:
    """Select captioned images that match your labels, to train on.

    Near-duplicates and the captions that fit their images worst are dropped.

    Example: sklearn-ape curate photos/ --labels "cat,dog" -n 500 -o chosen.csv
    """
    file_format = resolve_format(output, file_format)
    if dropped is not None:
        _check_dropped(dropped, output)
    for file in (output, dropped):
        check_replaces_no_input(file, data, labels_file)
        check_output_file(file)
    names = parse_labels(labels, labels_file, required=True, least=1)
    if all(limit is None for limit in (n_pairs, per_label, min_similarity)):
        raise typer.BadParameter(
            "The number of pairs to select is not set. Set --n-pairs 500, --per-label 50 or "
            "--min-similarity 0.4."
        )
    bunch = load_data(data, captions, strict, quiet, image=image, caption=caption)
    _check_images_and_captions(bunch, data)

    from ..aligners.pairs import flatten_captions
    from ..curation import select_relevant
    from ._models import RuntimeOptions, encode_images, make_image_encoder, make_text_encoder

    options = RuntimeOptions(cache, device, n_jobs, quiet)
    encoder = make_image_encoder(image_encoder, options, on_error="raise" if strict else "nan")
    caption_encoder = make_text_encoder(text_encoder, options)
    # One pair per caption: an image with several captions occurs in several pairs.
    texts, rows = flatten_captions(bunch.captions)
    paths = [bunch.images[row] for row in rows]
    encoded = encode_images(encoder, bunch.images, options)
    reasons = {
        pair: f"cannot be read: {encoded.errors[row]}"
        for pair, row in enumerate(rows.tolist())
        if row in encoded.errors
    }
    readable = [pair for pair in range(len(texts)) if pair not in reasons]
    readable_texts = [texts[pair] for pair in readable]
    with note_on_interrupt(options.resume_note):
        text_features = caption_encoder.transform(readable_texts)
    bad_pairs = _find_bad_pairs(
        encoded.features[rows[readable]],
        text_features,
        readable_texts,
        [paths[pair] for pair in readable],
        noisy,
        duplicates,
        random_state,
    )
    reasons |= {readable[position]: reason for position, reason in bad_pairs.items()}
    good = [pair for pair in readable if pair not in reasons]
    if not good:
        raise ValueError(
            f"All {len(texts):,} pairs were dropped before labels were compared. Set a smaller "
            "--noisy."
        )
    selection = select_relevant(
        [texts[pair] for pair in good],
        names,
        text_encoder=caption_encoder,
        n_pairs=n_pairs,
        per_label=per_label,
        min_similarity=min_similarity,
        templates=templates,
        random_state=random_state,
    )
    selected = [good[position] for position in selection.indices.tolist()]
    for pair in set(good).difference(selected):
        reasons[pair] = "not among the pairs nearest to the labels"
    if dropped is not None:  # first, because the reader of standard output may stop reading
        with Table(["image", "caption", "reason"], dropped) as table:
            for pair, reason in sorted(reasons.items()):
                table.write([FileName(paths[pair]), texts[pair], reason])
    names_of_selected = list(map(str, selection.labels))
    results = zip(selected, names_of_selected, selection.similarity.tolist(), strict=True)
    with Table(["image", "caption", "label", "similarity"], output, file_format) as table:
        for pair, name, similarity in results:
            table.write([FileName(paths[pair]), texts[pair], name, round(similarity, 4)])
    if not quiet:
        _print_summary(names_of_selected, list(reasons.values()))


def _check_dropped(dropped: Path, output: Path | None) -> None:
    """Raise an error unless the dropped pairs can be written to a table of their own."""
    resolve_format(dropped, None, "--dropped")
    if output is not None and expand_user(output).resolve() == expand_user(dropped).resolve():
        raise typer.BadParameter(f"--output and --dropped are both {str(dropped)!r}.")


def _check_images_and_captions(bunch: Any, data: Path) -> None:
    """Raise an error unless there are captions, and the images are paths."""
    if bunch.captions is None:
        raise ValueError(
            f"{str(data)!r} has no captions to select by. Write photo.txt next to photo.jpg, or "
            "set --captions filename or --captions folder."
        )
    no_path = next((image for image in bunch.images if not isinstance(image, str)), None)
    if no_path is not None:
        raise ValueError(
            f"{str(data)!r} contains images ({type(no_path).__name__}) instead of their paths, "
            "which the output table needs. Save the images as files."
        )


def _find_bad_pairs(
    image_features: np.ndarray,
    text_features: np.ndarray,
    captions: list[str],
    paths: list[str],
    noisy: float,
    duplicates: float,
    random_state: int,
) -> dict[int, str]:
    """Find noisy captions, repeated pairs, and near-duplicates, of which the best pair is kept.

    Return the reasons by row.
    """
    import numpy as np

    from ..curation import drop_near_duplicates, drop_noisy, find_near_duplicates, pair_quality

    groups = find_near_duplicates(image_features, threshold=duplicates)
    scores, good = None, np.arange(len(image_features))
    reasons: dict[int, str] = {}
    if noisy:
        try:
            quality = pair_quality(
                image_features, text_features, captions, groups=groups, random_state=random_state
            )
        except ValueError as error:  # too few pairs to compute a score
            print_message(f"Noisy captions are not dropped: {error}")
        else:
            scores, good = quality.score, drop_noisy(quality, share=noisy)
            reasons |= {
                row: f"a caption that fits its image poorly: its score is {scores[row]:.2f}"
                for row in np.setdiff1d(np.arange(len(image_features)), good).tolist()
            }
    best = good[drop_near_duplicates(groups[good], None if scores is None else scores[good])]
    path_by_group = {int(groups[row]): paths[row] for row in best.tolist()}
    pairs = set()
    for row in good.tolist():
        best_path, path = path_by_group[int(groups[row])], make_absolute(paths[row])
        # Several captions of one image are not duplicates. "./cat.jpg" is "cat.jpg".
        if make_absolute(best_path) != path:
            reasons[row] = f"nearly the same image as another: {best_path!r}"
        elif (path, captions[row]) in pairs:
            reasons[row] = "the same image and caption as another pair"
        pairs.add((path, captions[row]))
    return reasons


def _print_summary(names: list[str], reasons: list[str]) -> None:
    """Print numbers of pairs, given the labels of selected and the reasons of dropped pairs."""
    n_pairs = len(names) + len(reasons)
    print_message(f"Selected {len(names):,} of {n_pairs:,} pairs. Dropped:")
    # The text before the first colon is the kind of reason.
    kinds = Counter(reason.split(":")[0] for reason in reasons)
    for kind, count in kinds.most_common():
        print_message(f"  {count:,}: {kind}")
    by_label = ", ".join(f"{count} {name!r}" for name, count in Counter(names).items())
    print_message(f"Selected pairs by label: {by_label}.")
