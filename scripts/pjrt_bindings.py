#!/usr/bin/env python3
"""Generates backend-xla/src/pjrt/sys.rs, the raw bindings to the PJRT C API.

    python3 scripts/pjrt_bindings.py

Needs Python 3.10 or later with pip, and cargo. It fetches, pinned by version and hash:

* the header `pjrt_c_api.h` out of the `tensorflow-cpu` wheel (274 MB; the newest copy of the
  header that a package registry carries),
* `libclang` (a wheel), and
* `bindgen-cli`, built into target/pjrt-bindings.

The result is checked in, so that nobody who builds Understory needs any of this.

Only the functions named in FUNCTIONS are bound. The table of function pointers must keep its
layout, so every other entry stays in it as an opaque pointer, and the argument structs of those
entries are left out.
"""

import hashlib
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / "target" / "pjrt-bindings"
OUTPUT = ROOT / "backend-xla" / "src" / "pjrt" / "sys.rs"

HEADER_PACKAGE = "tensorflow-cpu==2.21.0"
HEADER_IN_WHEEL = "tensorflow/include/xla/pjrt/c/pjrt_c_api.h"
HEADER_SHA256 = "b5cdbd8289178466b9e695985fe065fe57c9b57f816c8e02b5f6bcf61c7aec4b"
LIBCLANG_PACKAGE = "libclang==18.1.1"
BINDGEN = "0.72.1"

FUNCTIONS = """
    PJRT_Error_Destroy PJRT_Error_Message PJRT_Error_GetCode
    PJRT_Plugin_Initialize PJRT_Plugin_Attributes
    PJRT_Event_Destroy PJRT_Event_IsReady PJRT_Event_OnReady
    PJRT_Client_Create PJRT_Client_Destroy PJRT_Client_PlatformName PJRT_Client_PlatformVersion
    PJRT_Client_AddressableDevices PJRT_Client_Compile PJRT_Client_BufferFromHostBuffer
    PJRT_Device_GetDescription PJRT_Device_MemoryStats
    PJRT_DeviceDescription_Id PJRT_DeviceDescription_Kind PJRT_DeviceDescription_Attributes
    PJRT_Executable_Destroy PJRT_Executable_NumOutputs PJRT_Executable_OptimizedProgram
    PJRT_Executable_Serialize PJRT_Executable_GetCostAnalysis
    PJRT_Executable_GetCompiledMemoryStats PJRT_Executable_DeserializeAndLoad
    PJRT_LoadedExecutable_Destroy PJRT_LoadedExecutable_GetExecutable
    PJRT_LoadedExecutable_Execute
    PJRT_Buffer_Destroy PJRT_Buffer_Dimensions PJRT_Buffer_OnDeviceSizeInBytes PJRT_Buffer_ReadyEvent
    PJRT_Buffer_ToHostBuffer
    PJRT_TopologyDescription_Create PJRT_TopologyDescription_Destroy
    PJRT_TopologyDescription_PlatformName PJRT_TopologyDescription_PlatformVersion
    PJRT_TopologyDescription_GetDeviceDescriptions
    PJRT_Compile
""".split()

HEAD = '''//! Raw bindings to the PJRT C API {major}.{minor}: generated, not written.
//!
//! Made by `scripts/pjrt_bindings.py` with bindgen {bindgen} from `pjrt_c_api.h` (Copyright The
//! OpenXLA Authors, Apache-2.0) as shipped in {package}. It is one long file because it is one
//! generated file; only the functions that this crate calls are bound.
#![allow(missing_docs, missing_debug_implementations, unreachable_pub, dead_code)]
#![allow(non_camel_case_types, non_snake_case, non_upper_case_globals)]
#![allow(unsafe_op_in_unsafe_fn, clippy::all, clippy::undocumented_unsafe_blocks)]
'''


def main() -> None:
    header = fetch_header()
    text = header.read_text()
    table = re.search(r"typedef struct PJRT_Api \{(.*?)\} PJRT_Api;", text, re.S).group(1)
    entries = re.findall(r"_PJRT_API_STRUCT_FIELD\((\w+)\)", table)
    unknown = set(FUNCTIONS) - set(entries)
    if unknown:
        sys.exit(f"not in {HEADER_IN_WHEEL}: {sorted(unknown)}")
    unused = [entry for entry in entries if entry not in FUNCTIONS]

    command = [tool("bindgen"), str(header)]
    command += ["--allowlist-type", "PJRT_Api"]
    command += ["--allowlist-var", "PJRT_API_(MAJOR|MINOR)"]
    command += ["--no-layout-tests", "--with-derive-default", "--no-prepend-enum-name"]
    command += ["--no-doc-comments", "--disable-header-comment", "--rust-target", "1.85"]
    for entry in unused:
        # The table stores `Option<fn>`; a function pointer that is never called may have any type.
        command += ["--blocklist-type", entry]
        command += ["--blocklist-type", f"{entry}_Args"]
    command += ["--", "-xc", "-std=c11"]
    # Not every libclang wheel carries clang's own headers; the compiler's will do.
    include = subprocess.check_output(["cc", "-print-file-name=include"], text=True).strip()
    command += ["-I", include]
    environment = dict(os.environ, LIBCLANG_PATH=str(fetch_libclang()))
    body = subprocess.check_output(command, env=environment, text=True)

    opaque = "\n".join(
        f"pub type {entry} = ::std::option::Option<unsafe extern \"C\" fn()>;" for entry in unused
    )
    version = {
        name: re.search(rf"#define PJRT_API_{name} (\d+)", text).group(1)
        for name in ("MAJOR", "MINOR")
    }
    head = HEAD.format(
        major=version["MAJOR"], minor=version["MINOR"], bindgen=BINDGEN, package=HEADER_PACKAGE
    )
    OUTPUT.write_text(f"{head}\n// Entries of the table that are not called.\n{opaque}\n\n{body}")
    subprocess.check_call(["rustfmt", "--edition", "2024", str(OUTPUT)])
    print(f"wrote {OUTPUT.relative_to(ROOT)}: {len(FUNCTIONS)} of {len(entries)} functions")


def fetch_header() -> Path:
    header = WORK / "pjrt_c_api.h"
    if not header.exists():
        wheel = fetch_wheel(HEADER_PACKAGE, ["--python-version", "3.12"])
        with zipfile.ZipFile(wheel) as archive:
            header.write_bytes(archive.read(HEADER_IN_WHEEL))
        wheel.unlink()
    found = hashlib.sha256(header.read_bytes()).hexdigest()
    if found != HEADER_SHA256:
        sys.exit(f"{header} has SHA-256 {found}, expected {HEADER_SHA256}")
    return header


def fetch_libclang() -> Path:
    folder = WORK / "libclang"
    if not folder.exists():
        with zipfile.ZipFile(fetch_wheel(LIBCLANG_PACKAGE, [])) as archive:
            archive.extractall(folder)
    return next(folder.rglob("libclang.so")).parent


def fetch_wheel(package: str, options: list[str]) -> Path:
    into = WORK / "wheels" / package.split("=")[0]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", package]
    command += ["--only-binary=:all:", "--dest", str(into), *options]
    subprocess.check_call(command)
    return next(into.glob("*.whl"))


def tool(name: str) -> str:
    path = WORK / "bin" / name
    if not path.exists():
        command = ["cargo", "install", f"{name}-cli", "--version", BINDGEN, "--locked"]
        subprocess.check_call([*command, "--root", str(WORK)])
    return str(path)


if __name__ == "__main__":
    WORK.mkdir(parents=True, exist_ok=True)
    main()
