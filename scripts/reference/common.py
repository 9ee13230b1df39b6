"""Where fixtures go, how they are written, and the float conventions that all of them share."""

import json
from pathlib import Path

import numpy as np
import torch

REPOSITORY = Path(__file__).resolve().parents[2]
FIXTURES = REPOSITORY / "tests" / "fixtures"


def versions(*packages: str) -> dict[str, str]:
    """The versions that a fixture was made with, for its head."""
    from importlib.metadata import version

    return {package: version(package) for package in packages}


def float32_numbers(values) -> list:
    """Nested lists of the shortest decimals that name these f32 values exactly."""
    array = np.asarray(values.detach().cpu() if isinstance(values, torch.Tensor) else values)
    if array.dtype != np.float32:
        raise TypeError(f"expected float32 values, got {array.dtype}")
    if not np.isfinite(array).all():
        raise ValueError("a fixture must not contain NaN or infinity")
    if array.ndim == 0:
        return float(str(array))
    if array.ndim == 1:
        return [float(str(value)) for value in array]
    return [float32_numbers(row) for row in array]


def write_json(path: Path, fixture: dict) -> None:
    """Writes compact JSON with a line a member, and a line an entry of each list of objects."""
    path.parent.mkdir(parents=True, exist_ok=True)
    members = []
    for key, value in fixture.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            entries = ",\n".join(_compact(entry) for entry in value)
            members.append(f"{json.dumps(key)}:[\n{entries}\n]")
        else:
            members.append(f"{json.dumps(key)}:{_compact(value)}")
    path.write_text("{\n" + ",\n".join(members) + "\n}\n", encoding="utf-8")
    print(f"{path.relative_to(REPOSITORY)}: {path.stat().st_size:,} bytes")


def _compact(value) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
