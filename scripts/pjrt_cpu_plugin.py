#!/usr/bin/env python3
"""Fetches XLA's CPU plugin, pinned by hash, and prints the path of the shared library.

    python3 scripts/pjrt_cpu_plugin.py [FOLDER]

FOLDER is target/pjrt-cpu by default. What is there already is not fetched again. The tests of
backend-xla call this where UNDERSTORY_PJRT_CPU_PLUGIN does not name a plugin. Needs Python 3.9 or
later with pip; the plugin itself (63 MB packed, 202 MB unpacked, Linux x86-64) needs nothing.
"""

import fcntl
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

VERSION = "0.11.2"
REQUIREMENT = f"lammps-jax-pjrt-cpu=={VERSION} --hash=sha256:1319390d948b39f69f7dade496b7c385149d9ca6097a6b62114da113216d9ad1\n"
LIBRARY = "lammps_jax_pjrt_cpu/pjrt_c_api_cpu_plugin.so"


def main() -> None:
    root = Path(__file__).resolve().parent.parent
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else root / "target" / "pjrt-cpu"
    folder = folder / VERSION
    folder.mkdir(parents=True, exist_ok=True)
    library = folder / Path(LIBRARY).name
    # Several test binaries may ask at once; one of them fetches.
    with open(folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not library.exists():
            fetch(library)
    print(library)


def fetch(library: Path) -> None:
    with tempfile.TemporaryDirectory(dir=library.parent) as scratch:
        requirements = Path(scratch) / "requirements.txt"
        requirements.write_text(REQUIREMENT)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        # pip checks the hash and stops if it differs.
        command += ["--require-hashes", "--only-binary=:all:", "--dest", scratch]
        subprocess.check_call([*command, "-r", str(requirements)], stdout=sys.stderr)
        (wheel,) = Path(scratch).glob("*.whl")
        unpacked = Path(scratch) / library.name
        with zipfile.ZipFile(wheel) as archive, archive.open(LIBRARY) as packed:
            with open(unpacked, "wb") as plain:
                while block := packed.read(1 << 22):
                    plain.write(block)
        # Complete or absent: the name appears last.
        os.replace(unpacked, library)


if __name__ == "__main__":
    main()
