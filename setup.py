"""Packaging: the requirements of the plugin and of FastReID at run time, each with its reason.

FastReID itself is not listed: release 1.4.0 requires torch 1.13.1, which conflicts with a current torch, so pip could
not install this package with it. `make` installs FastReID with --no-deps, and `import cerberus_plugin` without it says
how to install it. tools/install.py reads the lists below.
"""

HOST = "fastreid==1.4.0"

# Installed if the calling Python has no torch; any torch from 2.6 on works.
TORCH = ["torch==2.13.0", "torchvision==0.28.0"]

INSTALL_REQUIRES = [
    "torch>=2.6",  # earlier ones run code from weight files despite `weights_only=True` (CVE-2025-32434)
    "torchvision>=0.21",  # the release of torch 2.6
    "numpy>=1.26,<3",
    "scipy>=1.11",  # writes the .mat annotations of synthetic people; statistics of calibrations and seeds
    "Pillow>=10.3",  # reads all images; 10.0.0 has libwebp's flaw (CVE-2023-4863), 10.2 an overflow (CVE-2024-28219)
    "opencv-python-headless>=4.8,<6",  # draws synthetic people
    "matplotlib>=3.8",  # plots of rank lists and curves
    "Jinja2>=3.1,<4",  # writes the reports; escapes every name and number in them
    "tqdm>=4.60",  # progress of drawing, decoding and embedding
    "tabulate>=0.9,<1",  # result tables; FastReID imports it too
    "yacs>=0.1.8,<0.2",  # FastReID's configuration
    "PyYAML>=6",
    # Reads tables of own data: CSV, JSON lines and Parquet in one package without dependencies, a million rows in
    # seconds, dictionary-encoded. pandas would also need it for Parquet. 16.1 is the first release for numpy 2.
    "pyarrow>=16.1,<30",
    "safetensors>=0.4.3,<1",  # reads pretrained weights in a format without code; 0.4.3 limits its header
    "termcolor>=2",  # imported by FastReID's logger
    "tensorboard>=2.10",  # imported by FastReID's optimizers
    "scikit-learn>=1.3,<2",  # imported by FastReID's evaluators; ROC curve, t-SNE
    "faiss-cpu>=1.7.4,<2",  # imported by FastReID's distances; re-ranking; searches galleries
]

EXPORT = [
    "onnx>=1.16,<2",  # writes and checks exported models
    "onnxscript>=0.3,<1",  # torch.onnx.export translates torch's operators with it
    "onnxruntime>=1.18,<2",  # runs exported models; without torch, only numpy and Pillow are needed in addition
]

# Galleries on a cluster; milvus-lite is the same engine in a file, which the tests use.
MILVUS = ["pymilvus>=3.0,<4", "milvus-lite>=3.2,<4; sys_platform != 'win32'"]

SERVE = [
    "starlette>=1.5,<2",  # the page of `cerberus serve`; older releases let the Host header change the path
    "uvicorn>=0.34,<1",  # serves its requests, in pure Python
]

# Backbones in addition to FastReID's: MODEL.BACKBONE.NAME build_timm_backbone. Imported only there. 1.0.12 is the
# oldest release that passed the tests.
TIMM = ["timm>=1.0.12,<2"]

# The documentation site: `make docs`.
DOCS = [
    "mkdocs>=1.6.1,<2",  # builds the site; 1.6 has File.generated, and the packages below are for 1.x
    "mkdocs-material>=9.6,<10",  # its theme: search, light and dark mode, copy buttons; loads nothing from elsewhere
    "mkdocstrings>=1.0,<2",  # the API reference from docstrings
    "mkdocstrings-python>=2.0,<3",  # reads them from the source without importing it
]

EXTRAS_REQUIRE = {
    "dev": [*DOCS, *EXPORT, *MILVUS, *SERVE, *TIMM,
            "httpx2>=2,<3; python_version >= '3.11'",  # starlette's test client uses it
            "httpx>=0.27,<0.29; python_version < '3.11'",  # older releases use this one
            "pytest>=8,<10", "ruff>=0.6",
            "mypy>=1.15,<3",  # checks the types of the packages that pyproject.toml lists
            "pytest-xdist>=3.6,<4",  # runs the tests in several processes
            "nbformat>=5.9,<6", "nbclient>=0.9,<1",  # read and run the tutorials, for their tests
            "ipykernel>=6.29,<8",  # their kernel
            "playwright>=1.40,<2"],  # tests the pages in an installed browser, if there is one
    "docs": DOCS,
    "export": EXPORT,
    "milvus": MILVUS,
    "serve": SERVE,
    "timm": TIMM,
    "gpu": ["faiss-gpu-cu12>=1.8; platform_system == 'Linux'"],  # re-ranking of large galleries on the GPU
}

if __name__ == "__main__":
    from setuptools import find_packages, setup

    setup(
        name="cerberus-plugin",
        version="0.2.0",
        description="Attribute-based person re-identification with semantic IDs, as a FastReID plugin",
        packages=[*find_packages(include=["cerberus_plugin", "cerberus_plugin.*"]), "cerberus_plugin.configs"],
        package_dir={"cerberus_plugin.configs": "configs"},  # `cerberus train` chooses from them
        license="Apache-2.0",
        package_data={"cerberus_plugin": ["py.typed"],  # type checkers of other projects use the annotations
                      "cerberus_plugin.configs": ["*.yml", "*/*.yml"],
                      "cerberus_plugin.experiments.page": ["*.j2", "*.css", "*.js"],  # templates of the report
                      "cerberus_plugin.audit": ["*.j2", "*.css", "*.js"],  # the page of `cerberus audit`
                      "cerberus_plugin.own_data": ["*.j2", "*.yaml"],  # the page of `cerberus check`, and the ontology
                      "cerberus_plugin.search.gallery": ["*.j2", "*.css"],  # contact sheets of results
                      "cerberus_plugin.search.web": ["*.j2", "*.css", "*.js", "*.svg"],  # the page of `cerberus serve`
                      "cerberus_plugin.workflow": ["*.j2"]},  # the report of `cerberus train`
        python_requires=">=3.10",
        install_requires=INSTALL_REQUIRES,
        extras_require=EXTRAS_REQUIRE,
        entry_points={"console_scripts": ["cerberus=cerberus_plugin.cli:main"]},
    )
