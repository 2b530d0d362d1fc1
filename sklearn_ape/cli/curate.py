"""The command ``sklearn-ape curate``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ._console import note_on_interrupt, print_message
from ._inputs import (
    Cache,
    CaptionColumn,
    Captions,
    Data,
    Device,
    Format,
    ImageColumn,
    ImageEncoder,
    Labels,
    LabelsFile,
    NJobs,
    Quiet,
    RandomState,
    Strict,
    Templates,
    TextEncoder,
    load_data,
    parse_labels,
)
from ._output import FileName, Table, check_output_file, resolve_format

if TYPE_CHECKING:
    import numpy as np


def curate(
    data: Data,
    labels: Labels = None,
    labels_file: LabelsFile = None,
    n_pairs: Annotated[
        int | None,
        typer.Option(
            "--n-pairs", "-n", min=1, help="Number of pairs to select.", show_default=False
        ),
    ] = None,
    per_label: Annotated[
        int | None,
        typer.Option(min=1, help="Maximum number of pairs per label.", show_default=False),
    ] = None,
    min_similarity: Annotated[
        float | None,
        typer.Option(
            min=-1,
            max=1,
            help="Minimum caption-label cosine similarity; captions that contain the label are "
            "always kept.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Table of the selected pairs, which 'fit' can read. Default: standard output.",
            show_default=False,
        ),
    ] = None,
    dropped: Annotated[
        Path | None,
        typer.Option(help="Table of the dropped pairs and the reasons.", show_default=False),
    ] = None,
    noisy: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            help="Fraction of pairs to drop: those whose captions fit their images worst.",
        ),
    ] = 0.05,
    duplicates: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            help="Cosine similarity above which two images are treated as duplicates; 1 removes "
            "only exact duplicates.",
        ),
    ] = 0.97,
    image_encoder: ImageEncoder = "efficientnet_lite0",
    text_encoder: TextEncoder = "all-MiniLM-L6-v2",
    image: ImageColumn = "image",
    caption: CaptionColumn = "caption",
    captions: Captions = "auto",
    templates: Templates = "simple",
    random_state: RandomState = 0,
    strict: Strict = False,
    file_format: Format = None,
    cache: Cache = None,
    device: Device = "auto",
    n_jobs: NJobs = -1,
    quiet: Quiet = False,
) -> None:
    """Select training pairs that match your labels, without noisy captions and near-duplicates.

    Example: sklearn-ape curate photos/ --labels "cat,dog" -n 500 -o chosen.csv
    """
    file_format = resolve_format(output, file_format)
    if dropped is not None:
        resolve_format(dropped, None)
    check_output_file(output)
    check_output_file(dropped)
    names = parse_labels(labels, labels_file)
    if names is None:
        raise typer.BadParameter("No labels. Set --labels 'cat,dog' or --labels-file labels.txt.")
    if n_pairs is per_label is min_similarity is None:
        raise typer.BadParameter(
            "No number of pairs. Set --n-pairs 500, --per-label 50 or --min-similarity 0.4."
        )
    bunch = load_data(
        data, image=image, caption=caption, captions=captions, strict=strict, quiet=quiet
    )
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

    from ..curation import select_relevant
    from ._models import RuntimeOptions, encode_images, make_image_encoder, make_text_encoder

    options = RuntimeOptions(cache, device, n_jobs, quiet)
    encoder = make_image_encoder(image_encoder, options, on_error="raise" if strict else "nan")
    caption_encoder = make_text_encoder(text_encoder, options)
    # One pair per caption: an image with several captions occurs in several pairs.
    pairs = [
        (path, text, row)
        for row, (path, texts) in enumerate(zip(bunch.images, bunch.captions, strict=True))
        for text in ([texts] if isinstance(texts, str) else texts)
    ]
    encoded = encode_images(encoder, bunch.images, options)
    reasons = {
        index: f"cannot be read: {encoded.errors[row]}"
        for index, (_, _, row) in enumerate(pairs)
        if row in encoded.errors
    }
    readable = [index for index in range(len(pairs)) if index not in reasons]
    texts = [pairs[index][1] for index in readable]
    with note_on_interrupt(options.resume_note):
        text_features = caption_encoder.transform(texts)
    bad_pairs = _find_bad_pairs(
        encoded.features[[pairs[index][2] for index in readable]],
        text_features,
        texts,
        [pairs[index][0] for index in readable],
        noisy,
        duplicates,
        random_state,
    )
    reasons |= {readable[position]: reason for position, reason in bad_pairs.items()}
    good = [index for index in readable if index not in reasons]
    selection = select_relevant(
        [pairs[index][1] for index in good],
        names,
        text_encoder=caption_encoder,
        n_pairs=n_pairs,
        per_label=per_label,
        min_similarity=min_similarity,
        templates=templates,
        random_state=random_state,
    )
    selected = [good[position] for position in selection.indices.tolist()]
    for index in set(range(len(pairs))).difference(selected, reasons):
        reasons[index] = "not among the pairs nearest to the labels"
    if dropped is not None:  # first, because the reader of standard output may stop reading
        with Table(["image", "caption", "reason"], dropped) as table:
            for index, reason in sorted(reasons.items()):
                table.write([FileName(pairs[index][0]), pairs[index][1], reason])
    with Table(["image", "caption", "label", "similarity"], output, file_format) as table:
        for index, name, similarity in zip(
            selected, selection.labels, selection.similarity, strict=True
        ):
            path, text, _ = pairs[index]
            table.write([FileName(path), text, str(name), round(float(similarity), 4)])
    print_message(f"Selected {len(selected):,} of {len(pairs):,} pairs. Dropped:", quiet)
    for kind, count in Counter(reason.split(":")[0] for reason in reasons.values()).most_common():
        print_message(f"  {count:,} {kind}", quiet)
    counts = Counter(map(str, selection.labels))
    by_label = ", ".join(f"{count} {name!r}" for name, count in counts.items())
    print_message(f"Selected pairs by label: {by_label}.", quiet)


def _find_bad_pairs(
    image_features: np.ndarray,
    text_features: np.ndarray,
    captions: Sequence[str],
    paths: Sequence[str],
    noisy: float,
    duplicates: float,
    random_state: int,
) -> dict[int, str]:
    """Find noisy captions and near-duplicate images.

    Parameters
    ----------
    image_features, text_features : ndarray of shape (n_pairs, n_features)
        Features of the image and of the caption of each pair.
    captions, paths : sequence of str, length n_pairs
        Caption and image path of each pair.
    noisy : float
        Fraction of pairs to drop, those with the lowest quality scores.
    duplicates : float
        Cosine similarity above which two images are near-duplicates. The pair with the best
        quality score is kept.
    random_state : int
        Seed of the cross-validation that computes the quality scores.

    Returns
    -------
    reasons : dict of {int: str}
        Reasons by row. The text before the first colon is the kind of reason.
    """
    import numpy as np

    from ..curation import drop_near_duplicates, drop_noisy, find_near_duplicates, pair_quality

    groups = find_near_duplicates(image_features, threshold=duplicates)
    scores, good = None, np.arange(len(image_features))
    reasons: dict[int, str] = {}
    if noisy:
        try:
            quality = pair_quality(
                image_features,
                text_features,
                list(captions),
                groups=groups,
                random_state=random_state,
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
    for row in good.tolist():
        kept = path_by_group[int(groups[row])]
        if kept != paths[row]:  # several captions of one image are not duplicates
            reasons[row] = f"nearly the same image as another: {kept!r}"
    return reasons
