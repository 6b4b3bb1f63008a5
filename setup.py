from setuptools import setup

setup()  # noqa: I001
