"""Prints docs/parameters.md: every setting with its default, its allowed values and what it does."""

import argparse
import ast
import inspect
import io
import tokenize
from collections.abc import Iterator, Mapping
from typing import Any, cast, get_args

import yaml
from pydantic import BaseModel

from pipeline.settings.evaluation import EvaluateConfig
from pipeline.settings.machine import Machine
from pipeline.settings.tasks import TASKS
from pipeline.settings.training import TrainConfig
from stages import console
from stages.params import Params

_HEAD = """\
# Parameters

All settings, a section a stage. Each has its default in code: `params.yaml` needs only those that differ.
Any of them can also be given for one run: `dvc exp run -S ++train.weight_decay=0.1`. A setting that does
nothing beside the others is refused, unless it has its default. [experiments.md](experiments.md) has more.

This page is printed by `python -m stages.parameters`.
"""
_MACHINE = """
## machine.yaml

What a run takes of the machine, in a file of its own that is optional and that git ignores. Changing it runs
nothing again.
"""
_TYPES = {  # of JSON
    "boolean": "`true`, `false`",
    "integer": "whole number",
    "null": "`null`",
    "number": "number",
    "object": "mapping",
    "string": "text",
}
_LIMITS = {"exclusiveMinimum": ">", "minimum": "≥", "exclusiveMaximum": "<", "maximum": "≤"}


def main() -> None:
    """Print the page."""
    argparse.ArgumentParser(
        prog="python -m stages.parameters",
        description=__doc__,
        epilog="Reads pipeline/settings/. Use: python -m stages.parameters > docs/parameters.md",
    ).parse_args()
    print(page(), end="")


def page() -> str:
    """The content of docs/parameters.md."""
    unused = _unused()
    lines = _HEAD.splitlines()
    for section, field in Params.model_fields.items():
        (model,) = _models(field.annotation)
        lines += ["", f"## {section}", *_tables(model, f"{section}.", unused)]
    return "\n".join([*lines, *_MACHINE.splitlines(), *_tables(Machine, "", {})]) + "\n"


def _unused() -> dict[str, str]:
    """{setting: why it does nothing by default, or by default where its section counts}."""
    by_default = {f"train.{key}": reason for key, reason in TrainConfig().unused("recurrent").items()}
    by_default |= {f"evaluate.{key}": why for key, why in EvaluateConfig().unused(TrainConfig()).items()}
    found = dict(by_default)
    for task in TASKS:
        for key, reason in TrainConfig(task=task).unused("recurrent").items():
            if f"train.{key.rpartition('.')[0]}" in by_default:
                found.setdefault(f"train.{key}", reason)
    return found


def _tables(model: type[BaseModel], prefix: str, unused: Mapping[str, str]) -> Iterator[str]:
    """A table for a model and each model that it inherits from; then a part for each section inside."""
    schemas = model.model_json_schema()["properties"]
    for each in model.__mro__:
        comments = _comments(each) if issubclass(each, BaseModel) and each is not BaseModel else {}
        if comments:
            yield from ("", inspect.getdoc(each) or "", "", _row("key", "default", "values", "meaning"))
            yield _row(*["---"] * 4)
        for name, comment in comments.items():
            key = f"{prefix}{name}"
            meaning = comment + (f"; unused by default: {unused[key]}" if key in unused else "")
            yield _row(f"`{key}`", _default(schemas[name]), _values(schemas[name], key), meaning)
    for name, field in model.model_fields.items():
        for section in _models(field.annotation):
            yield from ("", f"### {prefix}{name}", *_tables(section, f"{prefix}{name}.", unused))


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def _models(annotation: Any) -> list[type[BaseModel]]:
    """The models that a field's value may be."""
    return [
        kind
        for kind in get_args(annotation) or [annotation]
        if isinstance(kind, type) and issubclass(kind, BaseModel)
    ]


def _comments(model: type[BaseModel]) -> dict[str, str]:
    """{field that a model itself has: the comment above it and on its lines}."""
    source = inspect.getsource(model)
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = {each.start[0]: each.string.lstrip("# ") for each in tokens if each.type == tokenize.COMMENT}
    found, end = {}, 0
    for node in cast(ast.ClassDef, ast.parse(source).body[0]).body:
        lines = range(end + 1, (end := node.end_lineno or end) + 1)
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            text = " ".join(comments[line] for line in lines if line in comments)
            found[node.target.id] = text.rstrip(".").replace("<", "&lt;")
    return found


def _default(schema: Mapping[str, Any]) -> str:
    if "default" not in schema:
        return "must be given"
    value = schema["default"]
    return "" if value and isinstance(value, dict) else f"`{_yaml(value)}`"


def _yaml(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True).removesuffix("\n").removesuffix("\n...")


def _values(schema: Mapping[str, Any], key: str) -> str:
    """What a JSON schema allows for a setting, in words."""
    if "$ref" in schema:
        return f"[section](#{key.replace('.', '')})"
    if choices := schema.get("anyOf"):
        return " or ".join(_values(choice, key) for choice in choices)
    if choices := schema.get("enum", [schema["const"]] if "const" in schema else []):
        return ", ".join(f"`{_yaml(choice)}`" for choice in choices)
    if "pattern" in schema:
        return f"text like `{schema['pattern']}`"
    if "prefixItems" in schema:
        return f"[{', '.join(_values(item, key) for item in schema['prefixItems'])}]"
    if "items" in schema:
        return f"list of {_values(schema['items'], key)}"
    limits = [f"{sign} {schema[name]}" for name, sign in _LIMITS.items() if name in schema]
    return f"{_TYPES[schema['type']]} {', '.join(limits)}".rstrip()


if __name__ == "__main__":
    console.run(main)
