"""Every Python block in the documentation runs, in the order of its page; what a page says is printed is printed."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path, language: str) -> list[str]:
    return [code for name, code in BLOCK.findall(page.read_text()) if name == language]


@pytest.mark.parametrize(
    "page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.name
)
def test_every_block_of_a_page_runs(page: Path, tmp_path: Path) -> None:
    program = tmp_path / "page.py"
    program.write_text("\n\n".join(blocks(page, "python")))
    ran = subprocess.run(
        [sys.executable, "-W", "error", str(program)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=tmp_path,  # what a page writes is gone afterwards
    )
    assert ran.returncode == 0, ran.stderr
    printed = [line.rstrip() for line in ran.stdout.splitlines()]
    for expected in blocks(page, "text"):
        for line in expected.splitlines():
            pattern = re.escape(line).replace("…", ".*")
            assert any(re.fullmatch(pattern, one) for one in printed), f"not printed: {line!r}\n{ran.stdout}"


def test_every_block_names_a_language_that_a_test_knows() -> None:
    known = {"python", "text", "mermaid", "sh", "console", "json"}
    unknown = {
        (page.name, name)
        for page in PAGES
        for name, _ in BLOCK.findall(page.read_text())
        if name not in known
    }
    assert not unknown
