"Packaging metadata, all of it read from settings.ini."

from configparser import ConfigParser
from pathlib import Path

from setuptools import setup

root = Path(__file__).parent
config = ConfigParser(delimiters=["="], interpolation=None)
config.read(root / "settings.ini", encoding="utf-8")
settings = config["DEFAULT"]


def lines(key):
    "The values of a setting that has one on each line."
    return settings[key].strip().splitlines()


setup(
    version=settings["version"],
    description=settings["description"],
    long_description=(root / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author=settings["author"],
    license_expression=settings["license"],
    keywords=settings["keywords"].split(", "),
    python_requires=f">={settings['min_python']}",
    classifiers=lines("classifiers"),
    install_requires=lines("requirements"),
    extras_require={key[: -len("_requirements")]: lines(key) for key in settings if key.endswith("_requirements")},
    entry_points={"console_scripts": lines("console_scripts")},
)
