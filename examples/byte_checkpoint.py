"""Checkpoints of train_bytes.py: one safetensors file with weights, optimizers and the carried state; the rest as metadata.

Nested dicts, lists and tuples of tensors become flat names, and a description of their nesting that builds them again.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor


def flatten(tree: object, name: str, tensors: dict[str, Tensor]) -> object:
    """Puts every tensor of the tree into `tensors`; returns the tree's description, which JSON can hold."""
    match tree:
        case Tensor():
            tensors[name] = tree.detach().contiguous().clone()
            return {"tensor": name}
        case dict():
            return {"dict": [[key, flatten(part, f"{name}.{key}", tensors)] for key, part in tree.items()]}
        case list() | tuple():
            return {type(tree).__name__: [flatten(part, f"{name}.{i}", tensors) for i, part in enumerate(tree)]}
    return {"value": tree}


def unflatten(description: dict[str, object], tensors: dict[str, Tensor]) -> object:
    """The tree that `flatten` described."""
    ((kind, content),) = description.items()
    match kind:
        case "tensor":
            return tensors[content]
        case "dict":
            return {key: unflatten(part, tensors) for key, part in content}
        case "list":
            return [unflatten(part, tensors) for part in content]
        case "tuple":
            return tuple(unflatten(part, tensors) for part in content)
    return content


def save_checkpoint(path: Path, tree: dict[str, object]) -> None:
    """Writes the tree, whole or not at all."""
    tensors: dict[str, Tensor] = {}
    description = {name: flatten(part, name, tensors) for name, part in tree.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".part")
    save_file(tensors, aside, metadata={name: json.dumps(part) for name, part in description.items()})
    os.replace(aside, path)


def load_checkpoint(path: Path) -> dict[str, object]:
    """The tree that was saved."""
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return {name: unflatten(json.loads(part), tensors) for name, part in file.metadata().items()}
