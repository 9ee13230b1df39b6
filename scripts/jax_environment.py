"""Makes the pinned `jax` package importable, without a virtual environment.

`activate` runs the calling script under a Python that the pins are for, installs what
requirements-jax.txt pins by hash into a folder of its own in the cache directory (about 110 MB
to fetch, once), and puts that folder first on the import path. Needs Python 3.11 or 3.12 with
pip, on Linux x86-64. Scripts that start at once wait for the one that installs.
"""

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

# The newest jax that there is for each Python.
JAX_VERSIONS = {(3, 11): "0.10.2", (3, 12): "0.12.0.1"}
REQUIREMENTS = Path(__file__).resolve().parent / "requirements-jax.txt"


def cache_directory() -> Path:
    """Where Understory keeps what it fetches: what UNDERSTORY_CACHE names, or else `understory`
    in the user's cache directory."""
    if folder := os.environ.get("UNDERSTORY_CACHE"):
        return Path(folder)
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "understory"


def use_pinned_python() -> str:
    """Starts the running script again under a Python of the pins, if this one isn't, and returns
    the version of jax that is pinned for it."""
    if version := JAX_VERSIONS.get(sys.version_info[:2]):
        return version
    for major, minor in sorted(JAX_VERSIONS, reverse=True):
        python = f"python{major}.{minor}"
        # A name on the path may be a stand-in that only says that it isn't installed.
        if (
            shutil.which(python)
            and subprocess.run([python, "-V"], capture_output=True).returncode == 0
        ):
            os.execvp(python, [python, *sys.argv])
    wanted = " or ".join(f"{major}.{minor}" for major, minor in JAX_VERSIONS)
    sys.exit(
        f"jax is pinned for Python {wanted}; this is {sys.version.split()[0]} and neither is on the path"
    )


def activate(cache: Path) -> None:
    """Makes `import jax` find the pinned version."""
    version = use_pinned_python()
    major, minor = sys.version_info[:2]
    folder = cache / f"jax-{version}-python{major}.{minor}"
    cache.mkdir(parents=True, exist_ok=True)
    with locked(cache / f"{folder.name}.lock"):
        if not folder.exists():
            install(folder)
    sys.path.insert(0, str(folder))


def install(folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f"{folder.name}-") as scratch:
        unfinished = Path(scratch) / "packages"
        options = "--quiet --no-deps --require-hashes --only-binary=:all: --root-user-action=ignore"
        command = [sys.executable, "-m", "pip", "install", *options.split()]
        command += ["--disable-pip-version-check", "--target", str(unfinished)]
        command += ["-r", str(REQUIREMENTS)]
        try:
            subprocess.run(command, check=True, stdout=sys.stderr)
        except subprocess.CalledProcessError as error:
            sys.exit(f"jax can't be installed: {' '.join(error.cmd)} failed")
        # Complete or absent: the name appears last.
        os.rename(unfinished, folder)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds a lock that other processes respect."""
    with open(path, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
