"""Folders, the package table and the links of src/motes agree."""

import pathlib
import tomllib

ROOT = pathlib.Path(__file__).resolve().parents[1]
SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]


def test_every_package_folder_is_listed():
    found = {"motes"}
    for name, folder in SETUPTOOLS["package-dir"].items():
        if name == "motes":
            continue
        for init in (ROOT / folder).rglob("__init__.py"):
            parts = init.parent.relative_to(ROOT / folder).parts
            found.add(".".join((name, *parts)))
    assert found == set(SETUPTOOLS["packages"])


def test_links_agree_with_the_mapping():
    for name, folder in SETUPTOOLS["package-dir"].items():
        link = ROOT / "src" / pathlib.Path(*name.split("."))
        assert link.resolve() == (ROOT / folder).resolve()
