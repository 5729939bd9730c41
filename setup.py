"""The repository root is the package ``velocity``: ``io/`` is ``velocity.io``."""

from setuptools import setup

setup(
    package_dir={"velocity": "."},
    packages=["velocity.io", "velocity.transforms", "velocity.pipelines", "velocity.runners"],
    package_data={"velocity.pipelines": ["*.yaml"], "velocity.runners": ["java/**/*"]},
)
