"""Folders that ``datasets.save_to_disk`` wrote, as their descriptions tell."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipeline.errors import InputError
from pipeline.terminal import printable


def fault(place: object, fact: str) -> InputError:
    """An error at a path, or at a word of the command line, on one line whatever that holds."""
    return InputError(f"{printable(str(place))}: {fact}")


def saved_files(folder: Path) -> list[Path] | None:
    """What ``datasets.save_to_disk`` wrote into a folder, in its order; None for other folders."""
    splits = _names(folder, "dataset_dict.json", _described(folder / "dataset_dict.json"), "splits")
    if splits:
        split = "train" if "train" in splits else splits[0]
        if split != "train" and len(splits) > 1:
            raise fault(
                folder,
                f"has the splits {printable(', '.join(splits))} and no train; "
                f"pass one, such as {printable(str(folder / split))}",
            )
        return saved_files(folder / split)
    state = _described(folder / "state.json")
    if "_data_files" not in state:
        return None
    if state.get("_indices_files") or state.get("_indices_data_files"):
        raise fault(
            folder,
            "its rows are chosen by an indices file; "
            "call flatten_indices() on the dataset and save it again",
        )
    files = [folder / name for name in _names(folder, "state.json", state, "_data_files")]
    for path in files:
        if not path.is_file():
            raise fault(path, "listed in state.json, but absent; save the dataset again")
    return files


def _names(folder: Path, file: str, described: dict[str, Any], key: str) -> list[str]:
    """Names of what lies in *folder*, and nowhere else, whatever its description says."""
    items = described.get(key, [])
    items = items if isinstance(items, list) else [None]
    found = [item.get("filename") if isinstance(item, dict) else item for item in items]
    for name in found:
        if not isinstance(name, str) or name in ("", ".", "..") or "/" in name or "\0" in name:
            raise fault(
                folder / file,
                f"{key}: names what is no file or folder beside it; save the dataset again",
            )
    return [str(name) for name in found]


def _described(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
