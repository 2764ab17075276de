"""Profiles of devices: what a model will be served on, where that is not the machine that searches."""

from __future__ import annotations

from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from autoft.errors import first_line
from autoft.lines import read_yaml
from autoft.quantities import parse_bytes

__all__ = ["WORKLOADS", "DeviceProfile", "dump_profile", "read_profile"]

WORKLOADS = ("torch", "torch-int8", "onnxruntime", "onnxruntime-int8")
"""What is timed on both machines, by runtime and arithmetic."""


class DeviceProfile(BaseModel):
    """A device that models are for, as ``autoft hardware --measure`` writes it there."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str
    cpu: str = ""
    threads: int = Field(ge=1)
    """That serve a model."""
    memory: int | str
    """For a serving process: bytes, or a size as ``4GiB``."""
    milliseconds: dict[str, list[float]]
    """By workload, the times of its shapes; a workload that is not there is a runtime that the device does not have."""
    versions: dict[str, str] = {}

    @field_validator("memory")
    @classmethod
    def _size(cls, value: int | str) -> int | str:
        if not isinstance(value, int):
            parse_bytes(value)
        return value

    @field_validator("milliseconds")
    @classmethod
    def _known(cls, value: dict[str, list[float]]) -> dict[str, list[float]]:
        unknown = [name for name in value if name not in WORKLOADS]
        if unknown or not value:
            raise ValueError(f"needs some of {', '.join(WORKLOADS)}; given {', '.join(unknown) or 'none'}")
        if any(not times or min(times) <= 0 for times in value.values()):
            raise ValueError("each workload needs its times in milliseconds, all above 0")
        return value

    @property
    def memory_bytes(self) -> int:
        """The memory in bytes."""
        return self.memory if isinstance(self.memory, int) else parse_bytes(self.memory)


def read_profile(path: Path) -> DeviceProfile:
    """Read a profile.

    Raises:
        ValueError: the file cannot be read or is no profile; the message says what to do.
    """
    hint = "write one on the device with: autoft hardware --measure profile.yaml"
    try:
        value, _ = read_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"no such file: {path}; {hint}") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read: {first_line(error)}; {hint}") from None
    try:
        return DeviceProfile.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise ValueError(f"{path} is no profile of a device: {where}: {first['msg']}; {hint}") from None


def dump_profile(profile: DeviceProfile) -> str:
    """Return a profile as YAML that :func:`read_profile` reads back."""
    head = "# What models are to be served on. In a recipe: budget: {target: this-file.yaml}\n"
    return head + yaml.safe_dump(profile.model_dump(), sort_keys=False, allow_unicode=True)
