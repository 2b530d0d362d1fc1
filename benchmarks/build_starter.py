"""Build and test of the starter model that ships with the package.

    python -m benchmarks.build_starter PACKAGE [--cache FOLDER] [--check]

PACKAGE is the folder of the unpacked npm package @iconify/json. The model is trained on Open Clip
Art, emoji in nine styles, icons, and the classification head of EfficientNet-Lite0, and tested on
the Tux Paint stamps, which are never used for training. OpenMoji is left out, so that the demo and
the examples show images that the model has not seen, and so are the sets that `benchmarks.scale`
tests on, apart from Twemoji. Icons are rendered and encoded once. ``--check`` compares a build
with the model that ships.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from joblib import Parallel, delayed
from PIL import Image, ImageOps
from torch.nn.functional import cosine_similarity, normalize
from tqdm import tqdm

from sklearn_ape import APEAligner, KernelAligner, load_starter
from sklearn_ape.aligners._closed_form import Targets
from sklearn_ape.aligners._kernel_maps import make_kernel_maps
from sklearn_ape.aligners.similarity import Bank
from sklearn_ape.aligners.starter import (
    STARTER_FOLDER,
    STARTER_FORMAT,
    make_starter_encoders,
    unpack_starter,
)
from sklearn_ape.datasets import (
    get_data_home,
    load_iconify,
    load_noto_emoji,
    load_openclipart,
    load_openmoji,
    load_tuxpaint_stamps,
)
from sklearn_ape.datasets.base import write_bytes_atomically
from sklearn_ape.encoders import classifier_head_pairs
from sklearn_ape.heads import (
    BlendedHead,
    ClosedFormHead,
    ConSEMap,
    ExtendedHead,
    Head,
    TwoTower,
    make_head,
)
from sklearn_ape.metrics import bootstrap_interval, rank_report, retrieval_ranks
from sklearn_ape.persistence.files import dump_json, write_tensors
from sklearn_ape.persistence.serialize import Serializer
from sklearn_ape.prompts import fill

from ._results import make_parser
from .accuracy.data import MAX_PER_CAPTION, choose_rows
from .scale import RELATED_SETS, TEST_SETS
from .studies.broad_words import find_broad_words, make_captions

DEPTH, WIDTH, N_COMPONENTS = 3, 1792, 640

# Weight of the MLP in the blend with the kernel.
HEAD_WEIGHT = 0.4

# Training of the MLP on the embeddings of texts by another head: epochs, texts per step, learning
# rate, and the number of captions that are also used in the default templates.
N_EPOCHS, BATCH_SIZE, LEARNING_RATE, N_TEMPLATED = 12, 512, 1e-3, 15_000

# ConSE: factor of the logits of the classification head, logit of images that show none of its
# classes, and weight of the names of the classes. Chosen on photographs of other packages.
LOGIT_SCALE, MIN_LOGIT, CLASS_WEIGHT = 0.5, 20.0, 0.6
# Number of images, and of captions, by which cosines are standardized. More, or a wider MLP, would
# not fit into a file of 24 MB.
N_BANK = 600

EMOJI_SETS = (
    *("emojione", "emojione-v1", "fluent-emoji", "fluent-emoji-flat", "fxemoji", "noto-v1"),
    *("streamline-emojis", "twemoji"),
)
# Categories of icons that are emoji, or whose captions are names of countries and companies.
EXCLUDED_CATEGORIES = ("Emoji", "Flags / Maps", "Logos", "Programming")
MAX_PER_ICON_CAPTION = 4

# Twice the input size of the encoder.
_MAX_MIRRORED_SIDE = 448


class Icons(NamedTuple):
    """Images of icons, with their names, sets and licenses."""

    images: np.ndarray
    names: np.ndarray
    sets: np.ndarray
    licenses: np.ndarray

    def select(self, rows: np.ndarray) -> Icons:
        """Return some of the icons."""
        return Icons(*(values[rows] for values in self))


def load_training_pairs(package: str) -> tuple[list, list, list[Icons], tuple[list, list]]:
    """Return images, captions, the icons among them, and mirrored images with their captions.

    The captions of an image are a list, whose first item is its name.
    """
    clip_art, noto = load_openclipart(), load_noto_emoji()
    broad_words = find_broad_words((load_openmoji(), noto), clip_art)
    rows = choose_rows(clip_art.captions, MAX_PER_CAPTION)
    images = [*noto.images, *(clip_art.images[row] for row in rows)]
    names = [*noto.captions, *(clip_art.captions[row] for row in rows)]
    emoji = load_icons(package, sets=EMOJI_SETS)
    icons = choose_icons(load_icons(package, EXCLUDED_CATEGORIES))
    captions = [
        [name, *make_captions(broad_words.get(image, ()))]
        for image, name in zip(images, names, strict=True)
    ]
    # Images and emoji of other styles have the broad words of images with the same name:
    # otherwise broad words are mapped to few images, and fewer are recognized.
    texts_by_name = {texts[0]: texts for texts in reversed(captions) if len(texts) > 1}
    captions = [
        texts if len(texts) > 1 else texts_by_name.get(texts[0], texts)
        for texts in [*captions, *([name] for name in emoji.names)]
    ]
    mirrored = mirror_images(images), captions[: len(images)]
    images += [*emoji.images, *icons.images]
    captions += [[name] for name in icons.names]
    return images, captions, [emoji, icons], mirrored


def mirror_images(images: Sequence[str]) -> list[str]:
    """Return paths of mirrored copies of images, which are written to the data home once."""
    folder = get_data_home() / "mirrored"
    folder.mkdir(parents=True, exist_ok=True)

    def mirror(path: str) -> str:
        target = folder / f"{hashlib.sha256(path.encode()).hexdigest()}.png"
        if not target.exists():
            content = io.BytesIO()
            with Image.open(path) as image:
                image.thumbnail((_MAX_MIRRORED_SIDE, _MAX_MIRRORED_SIDE))
                ImageOps.mirror(image.convert("RGBA")).save(content, format="PNG")
            write_bytes_atomically(target, content.getvalue())
        return str(target)

    return Parallel(n_jobs=-1, prefer="threads")(delayed(mirror)(path) for path in images)


def load_icons(package: str, excluded_categories: Sequence[str] = (), **options: Any) -> Icons:
    """Return the icons that ``load_iconify`` reads, apart from some categories."""
    data = load_iconify(package, n_jobs=-1, verbose=1, **options)
    icons = Icons(
        *(
            np.asarray(values, dtype=object)
            for values in (data.images, data.captions, data.sets, data.licenses)
        )
    )
    return icons.select(~np.isin(data.categories, excluded_categories))


def choose_icons(icons: Icons) -> Icons:
    """Return a few icons of each caption, without those of the sets that benchmarks test on."""
    # In random order, so that the icons of a caption are of different sets.
    order = np.random.RandomState(0).permutation(len(icons.names))
    order = order[~np.isin(icons.sets[order], (*TEST_SETS, *RELATED_SETS))]
    rows = choose_rows(icons.names[order], MAX_PER_ICON_CAPTION)
    return icons.select(np.sort(order[rows]))


def add_templates(texts: Sequence[str], words: Sequence[str]) -> list[str]:
    """Return different texts, and some words also in the default templates."""
    return list(
        dict.fromkeys([*texts, *(text for word in words for text in fill("simple", word))])
    )


def list_texts(captions: Sequence[Sequence[str]]) -> list[str]:
    """Return the different captions, and some of them in the default templates."""
    texts = list(dict.fromkeys(text for texts in captions for text in texts))
    rows = np.random.RandomState(0).permutation(len(texts))[:N_TEMPLATED]
    return add_templates(texts, [texts[row] for row in rows])


def distill(teacher: Head, texts: torch.Tensor) -> Head:
    """Return an MLP that maps features of texts to nearly the same directions as another head.

    A kernel with tens of thousands of anchors would not fit into the file.
    """
    student = make_head("mlp", texts.shape[1], N_COMPONENTS, depth=DEPTH, width=WIDTH, dropout=0.0)
    student.set_statistics(texts)
    with torch.inference_mode():
        targets = torch.cat([normalize(teacher(part)) for part in texts.split(8192)])
    n_steps = N_EPOCHS * math.ceil(len(texts) / BATCH_SIZE)
    optimizer = torch.optim.AdamW(student.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, n_steps)
    for _ in tqdm(range(N_EPOCHS), desc="distill", unit="epoch"):
        for rows in torch.randperm(len(texts)).split(BATCH_SIZE):
            with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
                embeddings = student(texts[rows])
            loss = 1 - cosine_similarity(embeddings.float(), targets[rows]).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return student.eval()


def add_classes(aligner: APEAligner) -> None:
    """Add to the embedding of an image the names of the ImageNet classes that it shows."""
    pairs = classifier_head_pairs(aligner.image_encoder_, definitions=False)
    embeddings = np.stack([aligner.transform_text(names).mean(axis=0) for names in pairs.texts])
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    embeddings -= embeddings.mean(axis=0)
    conse_map = ConSEMap(
        LOGIT_SCALE * pairs.weights, CLASS_WEIGHT * embeddings, LOGIT_SCALE * MIN_LOGIT
    )
    image_head = aligner.module_.image_head
    aligner.module_ = TwoTower(
        ExtendedHead(image_head, 1.0, np.zeros(N_COMPONENTS), conse_map),
        aligner.module_.text_head,
    ).eval()


def set_bank(aligner: APEAligner, images: list, captions: list) -> None:
    """Compute the embeddings by which cosines are standardized with the final heads."""
    aligner._set_bank(aligner._fit_pairs(images, captions))
    rows = np.linspace(0, len(aligner.bank_.image) - 1, N_BANK).astype(int)
    aligner.bank_ = Bank.from_embeddings(aligner.bank_.image[rows], aligner.bank_.text[rows])


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


def pack_starter(aligner: APEAligner, path: Path) -> None:
    """Write a fitted aligner to a file in which matrices are 8-bit integers.

    Parameters
    ----------
    aligner : APEAligner
        Fitted aligner. The values of its matrices are rounded in place, so that it is the aligner
        that `unpack_starter` returns.
    path : pathlib.Path
        File to write.
    """
    for tensor in (*aligner.module_.parameters(), *aligner.module_.buffers()):
        if tensor.ndim == 2:
            tensor.data.copy_(torch.from_numpy(_quantize(tensor.detach().numpy())))
    aligner._set_module(aligner.module_, aligner.logit_scale_)
    bank = aligner.bank_
    aligner.bank_ = Bank.from_embeddings(_quantize(bank.image), _quantize(bank.text))
    serializer = Serializer()
    config = serializer.encode_estimator(aligner, "aligner")
    text = dump_json({"format": STARTER_FORMAT, "model": config})
    write_tensors(path, serializer.tensors, text)


def _quantize(values: np.ndarray) -> np.ndarray:
    """Return rows as multiples of 8-bit integers, with their norms preserved."""
    largest = np.abs(values).max(axis=1, keepdims=True)
    integers = np.rint(127 * (values / np.where(largest > 0, largest, 1))).astype(np.int8)
    norms = np.linalg.norm(integers.astype(np.float64), axis=1)
    scale = np.linalg.norm(values.astype(np.float64), axis=1) / np.where(norms > 0, norms, 1)
    # With 12 bits, products of scale and integers are exact, so that quantizing them again gives
    # the same values.
    mantissa, exponent = np.frexp(scale)
    scale = np.ldexp(np.rint(mantissa * 2**12) / 2**12, exponent).astype(np.float32)
    return integers * scale[:, None]


CARD = """\
# The starter model of sklearn-ape

`ZeroShotClassifier(labels).predict(images)` uses this model when no aligner is given, and
`sklearn_ape.load_starter()` returns it.

- **Model:** an `APEAligner` between EfficientNet-Lite0 (`pooling="gem"`, `crop="pad"`) and
  all-MiniLM-L6-v2. Its embeddings of texts are a blend of a kernel ridge regression with
  {n_anchors:,} anchor texts and, with a weight of {weight}, an MLP with {depth} layers. They have
  {n_components} dimensions. Matrices are 8-bit integers with one scale per row. The file is
  `model.safetensors`, {megabytes:.1f} MB, sha256
  `{digest}`.
- **Photographs:** the embedding of an image is that of its whitened features plus, with a weight
  of {class_weight}, those of the names of the ImageNet classes that EfficientNet-Lite0's
  classification head finds in it (ConSE, Norouzi et al., 2014). Little is added to images for
  which no class has a logit above {min_logit:.0f}, such as most drawings.
- **Training data:** {n_pairs:,} images and their names, and the names, synonyms and definitions of
  the 1,000 ImageNet classes with the weight vectors of EfficientNet-Lite0's classification head
  (Apache-2.0). Images are of Open Clip Art 0.18 (public domain; at most {most} per caption), Noto
  Color Emoji (SIL OFL 1.1), and icon sets of the npm package @iconify/json
  {version}: {n_emoji:,} emoji of other styles, and {n_icons:,} icons for {n_icon_captions:,}
  captions, of the {n_sets} sets listed below. The file contains no images or captions, only
  features of captions and digests of the images. With the digests, `sklearn-ape evaluate` detects
  which images of a test set were used for training.
- **Not used:** OpenMoji, so that the demo and the examples of the documentation show images that
  the model has not seen, the Tux Paint stamps, and {n_test_sets} icon sets on which aligners are
  tested (`benchmarks/scale.py`). Many of the concepts of OpenMoji were seen in other styles.
- **Broad terms:** images of clip art and emoji have {n_broad} everyday terms, such as "animal",
  "a bird" and "food", as additional captions. The terms come from subcategories of emoji and from
  keywords of clip art (`benchmarks/studies/broad_words.py`).
- **Recipe:** an `APEAligner(head_pairs=image_encoder, depth={depth}, n_components={n_components},
  early_stopping=False)` is fitted to all of these pairs, with the mirror images of clip art and
  Noto. The MLP of the model is trained to embed {n_texts:,} texts as this aligner does: the
  captions, and some of them in the default templates. The kernel ridge regression is that of a
  `KernelAligner(gamma="scale")` without icons, in which broad terms are also in the default
  templates. The kernel and the weight of the MLP were chosen among more than 35 combinations by
  OpenMoji, icon sets, images of GCompris, 75 photographs, broad and everyday terms for the
  stamps, and the recall on the stamps. The weight of the names of classes, the logit and the
  scale of the logits were chosen on 78 photographs (`benchmarks/studies/photographs.py`), with a
  look at the other collections. All of these results, and the recall below, are therefore
  optimistic.
- **Recall** on the 951 Tux Paint stamps, which were not used for training, among their
  {n_names} captions, in % (95 % confidence interval):

| direction | recall@1 | recall@5 |
|---|---|---|
{rows}

- **Limits:** the model does not replace a CLIP. It recognizes the objects that clip art, emoji,
  icons and ImageNet classes show, in English. It does not read text, count objects or distinguish
  people, and it is often wrong for images and concepts that differ from its training data.
- **Rebuild:** unpack `npm pack @iconify/json`, and run `python -m benchmarks.build_starter
  PACKAGE`. It needs the `starter` extra and the Debian packages `openclipart-png`,
  `openclipart-svg`, `fonts-noto-color-emoji` and `tuxpaint-stamps-default`.
- **Icon sets**, with the number of images used and the license:

{sets}
"""


def main() -> int:
    """Build the model and print its card."""
    parser = make_parser("build_starter", __doc__)
    parser.add_argument("package", help="folder of the unpacked npm package @iconify/json")
    parser.add_argument(
        "--cache", default=get_data_home() / "features", help="feature cache folder"
    )
    parser.add_argument("--check", action="store_true", help="compare with the model that ships")
    options = parser.parse_args()
    images, captions, icons, mirrored = load_training_pairs(options.package)
    image_encoder, text_encoder = make_starter_encoders(
        cache=options.cache, dtype="auto", verbose=1
    )
    names = [texts[0] for texts in captions]
    aligner = APEAligner(
        image_encoder=image_encoder,
        text_encoder=text_encoder,
        head_pairs=classifier_head_pairs(image_encoder),
        depth=DEPTH,
        n_components=N_COMPONENTS,
        early_stopping=False,
        random_state=0,
        verbose=1,
    )
    # Mirrored copies keep the head from learning these images by heart, and give them more weight
    # beside the many icons.
    aligner.fit([*images, *mirrored[0]], [*captions, *mirrored[1]])
    torch.manual_seed(0)
    texts = list_texts([*captions, *aligner.head_pairs.texts])
    student = distill(aligner.module_.text_head, torch.as_tensor(text_encoder.transform(texts)))
    # Icons are left out of the closed form. Among photographs and other drawings, it is better
    # without them, and they would be most of its anchors.
    n_kernel = len(images) - len(icons[1].names)
    kernel_captions = [add_templates(texts, texts[1::2]) for texts in captions[:n_kernel]]
    kernel = KernelAligner(
        image_encoder=image_encoder,
        text_encoder=text_encoder,
        head_pairs=aligner.head_pairs,
        gamma="scale",
        n_components=N_COMPONENTS,
    )
    aligner.module_.text_head = BlendedHead(
        solve_closed_form(kernel, images[:n_kernel], kernel_captions, aligner),
        student,
        HEAD_WEIGHT,
    )
    # Broad words are captions of so many images that few pairs could be held out to estimate the
    # logit scale, so it is estimated without them.
    aligner.logit_scale_ = kernel.fit(images[:n_kernel], names[:n_kernel]).logit_scale_
    add_classes(aligner)
    set_bank(aligner, [*images, *mirrored[0]], [*captions, *mirrored[1]])
    # The file needs neither the texts of the head nor the options of this program.
    aligner.set_params(head_pairs=None, verbose=0)
    aligner.image_encoder, aligner.text_encoder = make_starter_encoders()
    aligner.image_encoder_, aligner.text_encoder_ = make_starter_encoders()
    folder = Path(tempfile.mkdtemp()) if options.check else STARTER_FOLDER
    folder.mkdir(exist_ok=True)
    path = folder / "model.safetensors"
    pack_starter(aligner, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    shipped = unpack_starter(path)
    # Encoders with the default data type, as users have them.
    shipped.image_encoder_, shipped.text_encoder_ = make_starter_encoders()
    stamps = load_tuxpaint_stamps()
    rows = measure_starter(shipped, stamps.images, stamps.captions)
    version = json.loads((Path(options.package) / "package.json").read_text())["version"]
    card = CARD.format(
        n_anchors=len(shipped.module_.text_head.first.base.anchors),
        n_components=N_COMPONENTS,
        depth=DEPTH,
        weight=HEAD_WEIGHT,
        class_weight=CLASS_WEIGHT,
        min_logit=MIN_LOGIT,
        megabytes=path.stat().st_size / 1e6,
        digest=digest,
        n_pairs=len(names),
        n_emoji=len(icons[0].names),
        n_icons=len(icons[1].names),
        n_icon_captions=len(set(icons[1].names)),
        n_sets=len({name for part in icons for name in part.sets}),
        version=version,
        n_broad=len({text for _, *broad in captions for text in broad}) // 2,
        n_texts=len(texts),
        n_test_sets=len(set(TEST_SETS) - set(EMOJI_SETS)),
        most=MAX_PER_CAPTION,
        n_names=len(set(stamps.captions)),
        rows="\n".join(f"| {direction} | {cells} |" for direction, cells in rows.items()),
        sets=list_sets(icons),
    )
    print(card)
    if options.check:
        shipped_digest = hashlib.sha256((STARTER_FOLDER / path.name).read_bytes()).hexdigest()
        if digest == shipped_digest:
            print("Identical to the model that ships.")
            return 0
        # Processors without bfloat16 compute other features, so the comparison is of accuracy.
        print("DIFFERENT from the model that ships, which has these rows:")
        for direction, cells in measure_starter(
            load_starter(), stamps.images, stamps.captions
        ).items():
            print(f"| {direction} | {cells} |")
        return 1
    (folder / "README.md").write_text(card, encoding="utf-8")
    return 0


def solve_closed_form(
    kernel: KernelAligner, images: list, captions: list, aligner: APEAligner
) -> ClosedFormHead:
    """Return the text head of a `KernelAligner` whose whitening is that of another aligner."""
    maps = make_kernel_maps(
        Targets(kernel._fit_pairs(images, captions), aligner.module_.image_head.base),
        gamma=kernel.gamma,
        ridge=kernel.ridge,
        seed=0,
        device=torch.device("cpu"),
    )
    return ClosedFormHead(maps.text).eval()


def list_sets(icons: Sequence[Icons]) -> str:
    """Return a sentence with the number of used images and the license of every set."""
    counts = Counter(
        (name, license)
        for part in icons
        for name, license in zip(part.sets, part.licenses, strict=True)
    )
    return ", ".join(
        f"{name} ({count:,}; {license})" for (name, license), count in sorted(counts.items())
    )


if __name__ == "__main__":
    sys.exit(main())
