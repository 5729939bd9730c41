"""The repository root is the package ``velocity``: ``io/`` is ``velocity.io``."""

from setuptools import Extension, setup

setup(
    package_dir={"velocity": "."},
    packages=["velocity.io", "velocity.transforms", "velocity.pipelines", "velocity.runners"],
    package_data={
        "velocity.pipelines": ["*.yaml"],
        "velocity.runners": ["java/**/*", "board_assets/*"],
    },
    ext_modules=[
        Extension(
            "velocity.io.kafka_native",
            ["io/kafka_native.c"],
            py_limited_api=True,
            optional=True,  # without a C compiler Kafka is read in Python alone
        ),
        Extension(
            "velocity.transforms.json_native",
            ["transforms/json_native.c"],
            py_limited_api=True,
            optional=True,  # and JSON by Arrow alone
        ),
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
