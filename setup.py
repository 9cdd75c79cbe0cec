"""What setup.cfg cannot say: the wheel keeps experiments/ inside the package.

Experiments stay at the top of the repository, where people read them. An installed program finds
its own copy in llama_jax/_project/experiments (see llama_jax/experiment.py).
"""

from setuptools import find_namespace_packages, find_packages, setup

INSIDE = "llama_jax._project.experiments"
FOLDERS = find_namespace_packages(
    include=["experiments", "experiments.*"], exclude=["*.__pycache__"]
)

setup(
    packages=[
        *find_packages(include=["llama_jax", "llama_jax.*"]),
        *(INSIDE + folder.removeprefix("experiments") for folder in FOLDERS),
    ],
    package_dir={INSIDE: "experiments"},
)
