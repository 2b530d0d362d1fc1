"""The package as a whole: what importing it costs and exposes."""

import ast
import importlib
import inspect
import pkgutil
import subprocess
import sys

import pytest

import sklearn_ape

MODULES = [
    module.name
    for module in pkgutil.walk_packages(sklearn_ape.__path__, "sklearn_ape.")
    if not any(part.startswith("_") for part in module.name.split("."))
]


def test_import_loads_no_heavy_library():
    """Not even torch: `import sklearn_ape` must be cheap in every worker."""
    heavy = ["torch", "skorch", "transformers", "timm", "open_clip", "pandas", "sklearn"]
    code = f"import sys, sklearn_ape; print([m for m in {heavy} if m in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


def test_the_page_is_reached_without_gradio():
    """`sklearn_ape.app` is a submodule like the others, and gradio is loaded when it serves."""
    code = (
        "import sys, sklearn_ape; assert 'sklearn_ape.app' not in sys.modules; "
        "build = sklearn_ape.app.build_app; print(build.__name__, 'gradio' in sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.split() == ["build_app", "False"]


def test_every_public_submodule_is_an_attribute():
    """No public module has to be imported by hand before it is used."""
    names = {module.split(".")[1] for module in MODULES}
    code = (
        f"import sklearn_ape; assert {names} <= set(dir(sklearn_ape)); "
        f"print(all(getattr(sklearn_ape, name) for name in {names}))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "True"


def test_public_names_resolve():
    for name in sklearn_ape.__all__:
        assert getattr(sklearn_ape, name) is not None
        assert name in dir(sklearn_ape)
    with pytest.raises(AttributeError, match="no attribute 'APEAlinger'"):
        _ = sklearn_ape.APEAlinger


def test_names_for_type_checkers_agree_with_lazy_names():
    """The imports under TYPE_CHECKING and the table of lazy imports list the same names."""
    tree = ast.parse(inspect.getsource(sklearn_ape))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level]
    names = {node.names[0].name: f".{node.module}" for node in imports}
    assert names == sklearn_ape._PUBLIC


@pytest.mark.parametrize("module", MODULES)
def test_every_public_class_and_function_is_documented(module):
    imported = importlib.import_module(module)
    for name in getattr(imported, "__all__", []):
        item = getattr(imported, name)
        if not (inspect.isclass(item) or inspect.isfunction(item)):
            continue
        text = inspect.getdoc(item) or ""
        assert text, f"{module}.{name}"
        is_exception = inspect.isclass(item) and issubclass(item, Exception)
        if is_exception and "__init__" not in vars(item):
            continue  # takes a message, and has no signature before Python 3.13
        parameters = [
            parameter
            for parameter in inspect.signature(item).parameters
            if parameter not in ("self", "args", "kwargs")
        ]
        if parameters and not hasattr(item, "_fields") and item.__module__.startswith(module):
            assert "Parameters\n----------" in text, f"{module}.{name}"
