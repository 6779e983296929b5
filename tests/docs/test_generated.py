"""The generated parts of the documentation are up to date."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parents[2] / "docs"
PAGES = [page for page in sorted(FOLDER.glob("*.md")) if "<!-- generated:" in page.read_text()]


def test_there_are_generated_pages() -> None:
    assert PAGES


def generate() -> ModuleType:
    """Load the module that writes what is generated."""
    spec = importlib.util.spec_from_file_location("generate", FOLDER / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_generated_parts_are_not_stale(page: Path) -> None:
    assert generate().generated(page.read_text()) == page.read_text(), "run `make docs`"
