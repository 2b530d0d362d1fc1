"""``sklearn-ape curate``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from ..curation import drop_near_duplicates, drop_noisy, find_near_duplicates, pair_quality
from ._console import noted_when_interrupted, say
from ._inputs import label_names, load_data
from ._options import (
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
)
from ._output import FileName, Table, check_file, form_of


def find_bad_pairs(
    features: np.ndarray,
    words: np.ndarray,
    captions: Sequence[str],
    paths: Sequence[str],
    noisy: float,
    duplicates: float,
    random_state: int,
) -> dict[int, str]:
    """Return what is wrong with those pairs that are to be dropped.

    Parameters
    ----------
    features, words : ndarray of shape (n_pairs, n_features)
        Of the images and of the captions.
    captions, paths : sequence of str, length n_pairs
        An image of several captions is there as often.
    noisy : float
        Share of the pairs to drop whose captions fit least.
    duplicates : float
        Cosine from which on two images are alike; the pair that fits best is kept.
    random_state : int
        Deals pairs to the folds in which they are judged.

    Returns
    -------
    reasons : dict of {int: str}
        By row. A reason begins with its kind, which a colon ends.
    """
    groups = find_near_duplicates(features, threshold=duplicates)
    scores, sound = None, np.arange(len(features))
    if noisy:
        try:
            quality = pair_quality(
                features, words, list(captions), groups=groups, random_state=random_state
            )
        except ValueError as error:  # too few pairs to learn from
            say(f"Captions are not compared with their images: {error}")
        else:
            scores, sound = quality.score, drop_noisy(quality, share=noisy)
    reasons = {
        row: f"a caption that fits its image poorly: its score is {scores[row]:.2f}"
        for row in np.setdiff1d(np.arange(len(features)), sound).tolist()
        if scores is not None
    }
    best = sound[drop_near_duplicates(groups[sound], None if scores is None else scores[sound])]
    first = {int(groups[row]): paths[row] for row in best.tolist()}
    for row in sound.tolist():
        other = first[int(groups[row])]
        if other != paths[row]:  # rows of one image are alike, and none is a copy
            reasons[row] = f"nearly the same image as another: {other!r}"
    return reasons


def curate(
    data: Data,
    labels: Labels = None,
    labels_file: LabelsFile = None,
    n_pairs: Annotated[
        int | None,
        typer.Option(
            "--n-pairs", "-n", min=1, help="How many pairs to choose.", show_default=False
        ),
    ] = None,
    per_label: Annotated[
        int | None, typer.Option(min=1, help="The most pairs of one label.", show_default=False)
    ] = None,
    min_similarity: Annotated[
        float | None,
        typer.Option(
            min=-1,
            max=1,
            help="Least cosine of a caption and a label, unless the caption names the label.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Table of the pairs that are kept, which 'fit' reads. By default standard "
            "output.",
            show_default=False,
        ),
    ] = None,
    dropped: Annotated[
        Path | None,
        typer.Option(help="Table of the pairs that are dropped, and why.", show_default=False),
    ] = None,
    noisy: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            help="Share of the pairs to drop whose captions fit their images least.",
        ),
    ] = 0.05,
    duplicates: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            help="Cosine from which on two images count as one; 1 keeps all but equal ones.",
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
    form: Format = None,
    cache: Cache = None,
    device: Device = "auto",
    n_jobs: NJobs = -1,
    quiet: Quiet = False,
) -> None:
    """Choose the pairs that are worth fitting on: about your labels, sound, and no two alike.

    Example: sklearn-ape curate photos/ --labels "cat,dog" -n 500 -o chosen.csv
    """
    form = form_of(output, form)
    if dropped is not None:
        form_of(dropped, None)
    check_file(output)
    check_file(dropped)
    names = label_names(labels, labels_file)
    if names is None:
        raise typer.BadParameter("give --labels 'cat,dog' or --labels-file labels.txt.")
    if n_pairs is per_label is min_similarity is None:
        raise typer.BadParameter(
            "say how many to choose: --n-pairs 500, --per-label 50 or --min-similarity 0.4."
        )
    bunch = load_data(
        data, image=image, caption=caption, captions=captions, strict=strict, quiet=quiet
    )
    if bunch.captions is None:
        raise ValueError(
            f"The images in {str(data)!r} have no captions to choose by. Write photo.txt "
            "beside photo.jpg, or give --captions filename or --captions folder."
        )

    absent = next((x for x in bunch.images if not isinstance(x, str)), None)
    if absent is not None:
        raise ValueError(
            f"{str(data)!r} holds images themselves ({type(absent).__name__}), not paths, so "
            "that a table cannot name the chosen ones."
        )

    from ..curation import select_relevant
    from ._models import Machine, encode_images, make_image_encoder, make_text_encoder

    machine = Machine(cache, device, n_jobs, quiet)
    images = make_image_encoder(image_encoder, machine, on_error="raise" if strict else "nan")
    texts = make_text_encoder(text_encoder, machine)
    # One row a caption: an image of several has a row for each.
    rows = [
        (path, text, number)
        for number, (path, texts_of) in enumerate(zip(bunch.images, bunch.captions, strict=True))
        for text in ([texts_of] if isinstance(texts_of, str) else texts_of)
    ]
    found = encode_images(images, bunch.images, machine)
    reasons = {
        row: f"cannot be read: {found.errors[number]}"
        for row, (_, _, number) in enumerate(rows)
        if number in found.errors
    }
    read = [row for row in range(len(rows)) if row not in reasons]
    features = found.features[[rows[row][2] for row in read]]
    captions_read = [rows[row][1] for row in read]
    with noted_when_interrupted(machine.kept):
        words = texts.transform(captions_read)
    paths = [rows[row][0] for row in read]
    for place, reason in find_bad_pairs(
        features, words, captions_read, paths, noisy, duplicates, random_state
    ).items():
        reasons[read[place]] = reason
    sound = [row for row in read if row not in reasons]
    chosen = select_relevant(
        [rows[row][1] for row in sound],
        names,
        text_encoder=texts,
        n_pairs=n_pairs,
        per_label=per_label,
        min_similarity=min_similarity,
        templates=templates,
        random_state=random_state,
    )
    picked = [sound[number] for number in chosen.indices.tolist()]
    for row in set(range(len(rows))).difference(picked, reasons):
        reasons[row] = "not among those nearest to the labels"
    if dropped is not None:  # first, since a reader of standard output may go away
        with Table(["image", "caption", "reason"], dropped) as table:
            for row, reason in sorted(reasons.items()):
                table.write([FileName(rows[row][0]), rows[row][1], reason])
    with Table(["image", "caption", "label", "similarity"], output, form) as table:
        for row, name, similarity in zip(picked, chosen.labels, chosen.similarity, strict=True):
            path, text, _ = rows[row]
            table.write([FileName(path), text, str(name), round(float(similarity), 4)])
    kinds = Counter(reason.split(":")[0] for reason in reasons.values())
    say(f"Chosen {len(picked):,} of {len(rows):,} pairs. Dropped:", quiet)
    for kind, count in kinds.most_common():
        say(f"  {count:,} {kind}", quiet)
    by_label = Counter(map(str, chosen.labels))
    say("By label: " + ", ".join(f"{n} {name!r}" for name, n in by_label.items()) + ".", quiet)
