"""Folders and modules of the package: names that say which one it is, and docstrings that say what goes into it."""

import ast
from collections import defaultdict
from pathlib import Path

import pytest

import digs_survey

PACKAGE = Path(digs_survey.__file__).parent
FOLDERS = sorted(path.parent for path in PACKAGE.rglob("__init__.py"))


def test_no_two_modules_share_a_file_name():
    places = defaultdict(list)
    for path in PACKAGE.rglob("*.py"):
        if path.name != "__init__.py":
            places[path.name].append(str(path.relative_to(PACKAGE)))
    assert len(places) > 100
    assert [found for found in places.values() if len(found) > 1] == []


def test_every_folder_of_modules_is_a_package():
    assert {path.parent for path in PACKAGE.rglob("*.py")} == set(FOLDERS)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: str(folder.relative_to(PACKAGE.parent)))
def test_every_folder_says_what_goes_into_it(folder):
    said = ast.get_docstring(ast.parse((folder / "__init__.py").read_text()))
    assert said, f"{folder.name}/__init__.py: expected a docstring that says what goes into the folder, found none"
    first = said.splitlines()[0]
    assert first.endswith("."), f"{folder.name}: expected a sentence, found {first!r}"
    assert len(first.split()) >= 5, f"{folder.name}: expected more than {first!r}"


def test_no_two_folders_say_the_same():
    said = [ast.get_docstring(ast.parse((folder / "__init__.py").read_text())) for folder in FOLDERS]
    assert len(set(said)) == len(said)
