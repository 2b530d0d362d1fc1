"""What our docstrings and pages need beyond numpydoc and MyST.

Names that stand alone, `APEAligner`, become links where only one public object has them; trailing
underscores in shapes, ``(n_samples, n_features_in_)``, are no links; and the empty line that ends
a doctest in Markdown is not shown.
"""

import re
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.nodes import make_refnode

_LINKED = ("class", "function", "exception", "data")
_TRAILING_UNDERSCORE = re.compile(r"(?<=\w)_(?=[,)\s]|$)")


def resolve(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, content: nodes.TextElement
) -> Any:
    """Return a link to the one object whose full name ends in the name that was written."""
    target = node.get("reftarget", "")
    if node.get("refdomain") != "py" or not target.isidentifier():
        return None
    objects = env.get_domain("py").objects
    found = {
        (entry.docname, entry.node_id)
        for name, entry in objects.items()
        if name.endswith(f".{target}") and entry.objtype in _LINKED
    }
    if len(found) != 1:
        return None
    ((docname, anchor),) = found
    return make_refnode(app.builder, node["refdoc"], docname, anchor, content, target)


def escape(app: Sphinx, what: str, name: str, item: Any, options: Any, lines: list[str]) -> None:
    """Escape the underscores that reStructuredText would take for links."""
    lines[:] = [
        line
        if line.lstrip().startswith((">>>", "..."))
        else _TRAILING_UNDERSCORE.sub(r"\\_", line)
        for line in lines
    ]


def strip(app: Sphinx, doctree: nodes.document) -> None:
    """Take empty lines from the ends of code blocks."""
    for block in doctree.findall(nodes.literal_block):
        if block.rawsource == block.astext():
            block.rawsource = block.rawsource.rstrip()
            block[:] = [nodes.Text(block.rawsource)]


def setup(app: Sphinx) -> dict[str, Any]:
    """Join the build, after numpydoc."""
    app.connect("missing-reference", resolve)
    app.connect("autodoc-process-docstring", escape, priority=900)
    app.connect("doctree-read", strip)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
