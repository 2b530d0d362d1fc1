"""Build and test of the starter model that ships with the package.

    python -m benchmarks.build_starter [--cache FOLDER] [--check]

The model is trained on Open Clip Art, OpenMoji, Noto Color Emoji and the classification head of
EfficientNet-Lite0, and tested on the Tux Paint stamps, which are never used for training. Builds
with the same library versions on the same type of processor are bitwise identical; ``--check``
compares a build with the model that ships.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from sklearn.base import clone

from sklearn_ape import KernelAligner
from sklearn_ape.aligners.kernel import (
    STARTER_FOLDER,
    pack_starter,
    starter_encoders,
    unpack_starter,
)
from sklearn_ape.datasets import (
    get_data_home,
    load_noto_emoji,
    load_openclipart,
    load_openmoji,
    load_tuxpaint_stamps,
)
from sklearn_ape.encoders import classifier_head_pairs
from sklearn_ape.metrics import bootstrap_interval, rank_report, retrieval_ranks

from .studies.broad_words import find_broad_words, make_captions

N_COMPONENTS = 640
MAX_PER_CAPTION = 5


def load_training_pairs() -> tuple[list, list[str]]:
    """Return images and captions, with the first few images only of frequent captions."""
    clip_art, *emoji = load_openclipart(), load_openmoji(), load_noto_emoji()
    counts: Counter[str] = Counter()
    images = [image for style in emoji for image in style.images]
    captions = [caption for style in emoji for caption in style.captions]
    for image, caption in zip(clip_art.images, clip_art.captions, strict=True):
        counts[caption] += 1
        if counts[caption] <= MAX_PER_CAPTION:
            images.append(image)
            captions.append(caption)
    return images, captions


def add_broad_words(images: list, captions: list[str]) -> list[list[str]]:
    """Return for each image its caption and its broad words, such as "animal"."""
    broad_words = find_broad_words((load_openmoji(), load_noto_emoji()), load_openclipart())
    return [
        [caption, *make_captions(broad_words.get(image, ()))]
        for image, caption in zip(images, captions, strict=True)
    ]


def measure_starter(aligner, images, captions) -> dict[str, str]:
    """Return the cells of the model card: recall of both directions with 95 % intervals."""
    names = list(dict.fromkeys(captions))
    pairs = np.column_stack([np.arange(len(images)), [names.index(c) for c in captions]])
    image, text = aligner.transform(images), aligner.transform_text(names)
    report = rank_report(image, text, pairs, ks=(1, 5))
    rows = {}
    for direction, queries, candidates, positives in (
        ("image to caption", image, text, pairs),
        ("caption to image", text, image, pairs[:, ::-1]),
    ):
        hits = retrieval_ranks(queries, candidates, positives) == 0
        low, high = bootstrap_interval(hits)[1:]
        recall = report["image_to_text" if direction.startswith("image") else "text_to_image"]
        rows[direction] = (
            f"{100 * hits.mean():.1f} ({100 * low:.1f} to {100 * high:.1f}) | "
            f"{100 * recall['recall@5']:.1f}"
        )
    return rows


CARD = """\
# The starter model of sklearn-ape

`ZeroShotClassifier(labels).predict(images)` uses this model when no aligner is given, and
`sklearn_ape.load_starter()` returns it.

- **Model:** a `KernelAligner` between EfficientNet-Lite0 (`pooling="gem"`, `crop="pad"`) and
  all-MiniLM-L6-v2 with {n_anchors:,} anchor texts and {n_components} dimensions. Anchors and
  coefficients are 8-bit integers with one scale per row. The file is `model.safetensors`,
  {megabytes:.1f} MB, sha256 `{digest}`.
- **Training data:** {n_pairs:,} images of Open Clip Art 0.18 (public domain; at most {most} per
  caption), OpenMoji (CC BY-SA 4.0, openmoji.org) and Noto Color Emoji (SIL OFL 1.1), and the
  names, synonyms and definitions of the 1,000 ImageNet classes with the weight vectors of
  EfficientNet-Lite0's classification head (Apache-2.0). The file contains no images or captions,
  only their features and digests of the images. With the digests, `sklearn-ape evaluate` detects
  which images of a test set were used for training.
- **Broad terms:** images have {n_broad} everyday terms, such as "animal", "a bird" and "food", as
  additional captions. The terms come from subcategories of emoji and from keywords of clip art
  (`benchmarks/studies/broad_words.py`).
- **Recipe:** `KernelAligner(head_pairs=image_encoder, n_components={n_components})`, and
  default values for all other parameters. Pooling was chosen by training on clip art and testing
  on emoji. The second style of emoji was chosen on held-out folders of Open Clip Art and held-out
  classes. The use of broad terms was chosen on the folders of half of the stamps, on images of
  GCompris, and after the figures below were computed once, which were lower with more terms.
  Apart from that, only `crop="pad"` was chosen on the stamps, with an earlier version.
- **Recall** on the 951 Tux Paint stamps, which were not used for training, among their
  {n_names} captions, in % (95 % confidence interval):

| model | direction | recall@1 | recall@5 |
|---|---|---|---|
{rows}
- **Limits:** the model does not replace a CLIP. It recognizes the objects that clip art, emoji
  and ImageNet classes show, in English. It does not read text, count objects or distinguish
  people, and it is often wrong for images and concepts that differ from its training data.
- **Rebuild:** run `python -m benchmarks.build_starter`. It needs the `starter` extra and the
  Debian packages `openclipart-png`, `openclipart-svg`, `fonts-noto-color-emoji` and
  `tuxpaint-stamps-default`.
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--cache", default=get_data_home() / "features", help="feature cache folder"
    )
    parser.add_argument("--check", action="store_true", help="compare with the model that ships")
    options = parser.parse_args()
    images, captions = load_training_pairs()
    image_encoder, text_encoder = starter_encoders(cache=options.cache, engine="torch", verbose=1)
    broad_captions = add_broad_words(images, captions)
    aligner = KernelAligner(
        image_encoder=image_encoder,
        text_encoder=text_encoder,
        head_pairs=classifier_head_pairs(image_encoder),
        n_components=N_COMPONENTS,
    )
    # Broad words are captions of so many images that few pairs could be held out to estimate the
    # logit scale, so it is estimated without them.
    logit_scale = clone(aligner).fit(images, captions).logit_scale_
    aligner.fit(images, broad_captions)
    aligner.logit_scale_ = logit_scale
    tensors, metadata = pack_starter(aligner)
    folder = Path(tempfile.mkdtemp()) if options.check else STARTER_FOLDER
    folder.mkdir(exist_ok=True)
    path = folder / "model.safetensors"
    save_file(tensors, path, metadata=metadata)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    shipped = unpack_starter(path)
    shipped.image_encoder_, shipped.text_encoder_ = starter_encoders(
        cache=options.cache, engine="torch"
    )
    stamps = load_tuxpaint_stamps()
    rows = ""
    for name, model in (("as fitted", aligner), ("as shipped", shipped)):
        for direction, cells in measure_starter(model, stamps.images, stamps.captions).items():
            rows += f"| {name} | {direction} | {cells} |\n"
    card = CARD.format(
        n_anchors=len(tensors["anchors"]),
        n_components=N_COMPONENTS,
        megabytes=path.stat().st_size / 1e6,
        digest=digest,
        n_pairs=len(images),
        n_broad=len({text for _, *broad in broad_captions for text in broad}) // 2,
        most=MAX_PER_CAPTION,
        n_names=len(set(stamps.captions)),
        rows=rows,
    )
    print(card)
    if options.check:
        is_same = (
            digest
            == hashlib.sha256((STARTER_FOLDER / "model.safetensors").read_bytes()).hexdigest()
        )
        print(
            "Identical to the model that ships."
            if is_same
            else "DIFFERS from the model that ships."
        )
        return int(not is_same)
    (folder / "README.md").write_text(card, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
