"""Changes of texts before they are tokenized: lower case and prompts."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

from .._first_few import first_few
from .._warnings import warn
from ._hub import loading, side_file


class TextPreparation(NamedTuple):
    """Changes of a text before it is tokenized, as the files of a model declare them.

    Parameters
    ----------
    prompt : str, default=""
        Text that is put in front of every text.
    lower : bool, default=False
        Whether texts are lower-cased, the prompt with them.
    tokenizer_lowers : bool, default=False
        Whether the tokenizer lower-cases by itself.
    """

    prompt: str = ""
    lower: bool = False
    tokenizer_lowers: bool = False

    def __call__(self, texts: Any) -> Any:
        """Return the texts as the model was trained to read them."""
        if self.prompt:
            texts = [self.prompt + text for text in texts]
        return [text.lower() for text in texts] if self.lower else texts

    def identity(self) -> dict[str, Any]:
        """Return the changes that affect features, for the key of the cache."""
        identity: dict[str, Any] = {}
        if self.prompt:
            identity["prompt"] = self.prompt
        if self.lower and not self.tokenizer_lowers:
            identity["lower"] = True
        return identity


@lru_cache(maxsize=64)
def declared_preparation(
    model_name: str, revision: str | None, weights: str | None
) -> TextPreparation:
    """Return the preparation of texts that the files of a model declare.

    SigLIP and SigLIP 2 were trained on lower-cased texts. The tokenizer of the first lower-cases
    by itself; that of the second, where it is loaded as Gemma's, does not.

    Parameters
    ----------
    model_name : str
        The ``model_name`` of a `TransformersTextEncoder`.
    revision : str or None
        Revision of a hub model.
    weights : str or None
        Digest or commit of the model. The files are read once for each.

    Returns
    -------
    preparation : TextPreparation
        For most models it changes nothing.

    Raises
    ------
    ValueError
        When the files are damaged, or name a default prompt that they do not hold.
    """

    def read(filename: str) -> dict[str, Any]:
        return side_file(model_name, revision, filename) or {}

    with loading(model_name):
        is_siglip = str(read("config.json").get("model_type")).startswith("siglip")
        lower = is_siglip or bool(read("sentence_bert_config.json").get("do_lower_case"))
        tokenizer = read("tokenizer_config.json") if is_siglip else {}
        tokenizer_lowers = str(tokenizer.get("tokenizer_class")).startswith("Siglip")
        is_sentence_model = side_file(model_name, revision, "modules.json") is not None
        sentence = read("config_sentence_transformers.json") if is_sentence_model else {}
        prompts = sentence.get("prompts") or {}
        default = sentence.get("default_prompt_name")
        if default is not None and default not in prompts:
            raise ValueError(f"default_prompt_name {default!r} is not among the prompts.")
    if default is None:
        _warn_of_prompts(model_name, {name: text for name, text in prompts.items() if text})
        return TextPreparation("", lower, tokenizer_lowers)
    return TextPreparation(prompts[default] or "", lower, tokenizer_lowers)


def _warn_of_prompts(model_name: str, prompts: dict[str, str]) -> None:
    if prompts:
        warn(
            f"{model_name!r} has prompts ({first_few(prompts)}) and none of them is the default, "
            "so texts are encoded without a prompt, as sentence-transformers does. Put the prompt "
            f"in front of the texts yourself, for instance {next(iter(prompts.values()))!r}.",
        )
