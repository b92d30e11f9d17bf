"""Adds ``configs/`` to the package, as ``jaxattn.configs``; the rest is in pyproject.toml."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["jaxattn*"]), "jaxattn.configs"],
    package_dir={"jaxattn.configs": "configs"},
)
