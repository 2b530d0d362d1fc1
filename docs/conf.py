"""Sphinx configuration. `make docs` builds the documentation without network access."""

import os
import sys
import warnings
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

from docutils import nodes

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))  # import the package from this checkout
sys.path.insert(0, str(HERE / "_extensions"))

# Examples must not connect to a model hub or print progress bars into the output of the gallery.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TQDM_DISABLE", "1")

project = "sklearn-ape"
author = "The sklearn-ape developers"
copyright = author
release = installed_version("sklearn-ape")
version = release

extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
    "own_words",
]
root_doc = "index"
exclude_patterns = ["_build", "**/GALLERY_HEADER.rst", "results/**.md"]
templates_path = ["_templates"]
# `APEAligner` in a docstring becomes a link if it is a public name, and code otherwise.
default_role = "py:obj"
suppress_warnings = [
    "config.cache",  # sphinx-gallery's settings contain functions, which cannot be pickled
]

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

autosummary_generate = True
autodoc_typehints = "none"  # the Parameters sections describe the types
autodoc_member_order = "bysource"
toc_object_entries_show_parents = "hide"
numpydoc_show_class_members = False  # the autosummary templates list the members
numpydoc_xref_param_type = False

copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
copybutton_exclude = ".linenos, .gp, .go"

sphinx_gallery_conf = {
    "examples_dirs": [str(HERE.parent / "examples")],
    "gallery_dirs": ["auto_examples"],
    "filename_pattern": r"plot_.*\.py",
    "within_subsection_order": "FileNameSortKey",
    "doc_module": ("sklearn_ape",),
    "default_thumb_file": str(HERE / "_static" / "logo.svg"),
    "backreferences_dir": "generated/backreferences",
    "abort_on_example_error": False,  # run all examples before the build fails
    "only_warn_on_example_error": False,
    "capture_repr": ("_repr_html_",),  # diagrams, not "<... object at 0x7f...>"
    "show_memory": False,
    "remove_config_comments": True,
    "download_all_examples": False,
    "show_signature": False,
    "write_computation_times": False,
}
# Ignore the deprecation warnings of other libraries while examples run.
warnings.filterwarnings("ignore", category=DeprecationWarning)

html_theme = "pydata_sphinx_theme"
html_title = "sklearn-ape"
html_logo = "_static/logo.svg"
html_favicon = "_static/favicon.svg"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_copy_source = False
html_baseurl = "https://sklearn-ape.readthedocs.io/en/latest/"
html_theme_options = {
    "logo": {"text": "sklearn-ape"},
    "navigation_with_keys": False,
    "show_prev_next": True,
    "show_toc_level": 2,
    "header_links_before_dropdown": 6,
    "navbar_persistent": ["search-button"],
    "footer_start": ["copyright"],
    "footer_end": ["sphinx-version"],
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
    "back_to_top_button": True,
}
# Pages that are in no section have nothing to show in a sidebar.
html_sidebars = {
    page: [] for page in ("index", "installation", "quickstart", "faq", "comparison", "api")
}


def keep_numbers_together(app: Any, doctree: nodes.document, docname: str) -> None:
    """Replace the spaces in "80 %" and "5.1 ± 1.4", so that browsers do not break lines there."""
    for text in list(doctree.findall(nodes.Text)):
        kept = text.replace(" %", "\u00a0%").replace(" ± ", "\u00a0±\u00a0")
        if kept != text and not isinstance(text.parent, (nodes.literal, nodes.FixedTextElement)):
            text.parent.replace(text, nodes.Text(kept))


def setup(app: Any) -> None:
    """Register the function above."""
    app.connect("doctree-resolved", keep_numbers_together)
