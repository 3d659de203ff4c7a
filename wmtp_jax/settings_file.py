"""Settings files: YAML read and checked, dotted overrides, errors that name the nearest setting.

A settings file is plain YAML: no includes, no interpolation.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any, TypeGuard, get_args, get_type_hints

import yaml
from pydantic import BaseModel, ValidationError

from wmtp_jax.config import Settings
from wmtp_jax.errors import UserError


def production_preset(stage: str) -> Path:
    """The settings file that a stage uses when none is named."""
    return Path("configs") / stage / f"{stage}.yaml"


def load_settings(path: Path, overrides: Sequence[str] = ()) -> Settings:
    """Reads a settings file and applies ``a.b=value`` overrides, the last one winning.

    Raises:
      UserError: the file is missing or not YAML, or settings are unknown, of the wrong type or out
        of range; every one of them is named, with the nearest known name.
    """
    values = _read_yaml(path)
    origin: dict[str, str] = {}
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not all(key.split(".")):
            raise UserError(f"--override {override!r}: expected a.b=value, e.g. training.max_steps=20")
        _assign(values, key.split("."), _parse_value(override, text), override)
        origin[key] = f"--override {key}"  # not the value: it may be a secret
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        problems = [_describe(dict(item), path, origin) for item in error.errors()]
        raise UserError("\n".join(problems)) from error


def as_yaml(settings: Settings) -> str:
    """The settings as YAML that `load_settings` reads back to the same settings."""
    return yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as dotted names, e.g. ``{"training.learning_rate": 1e-05}``."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        result |= flatten(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return result


class _Loader(yaml.SafeLoader):
    """YAML 1.1 with 1e-5 as a number and repeated keys as an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise yaml.MarkedYAMLError(problem=f"{key!r} cannot be a key", problem_mark=key_node.start_mark)
            if key in seen:
                raise yaml.MarkedYAMLError(problem=f"the key {key!r} stands twice", problem_mark=key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


# PyYAML follows YAML 1.1, where 1e-5 (no point) is a string.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+[eE][-+]?[0-9]+$"), list("+-0123456789")
)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        known = ", ".join(str(p) for p in sorted(Path("configs").glob("*/*.yaml"))) or "none here"
        raise UserError(f"{path}: no such settings file; presets: {known}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); a settings file is YAML text") from error
    values = _parse_yaml(text, str(path))
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected settings by part (experiment:, model:, ...), found {values!r:.60}")
    return values


def _parse_yaml(text: str, where: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f" line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise UserError(f"{where}{place}: not valid YAML: {error.problem}") from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise UserError(f"{where}: not valid YAML: {error}") from error


def _parse_value(override: str, text: str) -> Any:
    return _parse_yaml(text, f"--override {override}")


def _assign(values: dict[str, Any], keys: list[str], value: Any, override: str) -> None:
    for key in keys[:-1]:
        if values.get(key) is None:
            values[key] = {}
        values = values[key]
        if not isinstance(values, dict):
            raise UserError(f"--override {override}: {key!r} is a value, not a part with settings inside")
    values[keys[-1]] = value


def _describe(item: dict[str, Any], path: Path, origin: dict[str, str]) -> str:
    location = [str(part) for part in item["loc"] if part not in ("ModelConfig", "RopeScaling", "function-after")]
    name = ".".join(location)
    # An override inside the part at fault counts too: the part's own rule may have been broken by it.
    related = (key for key in origin if f"{name}.".startswith(f"{key}.") or f"{key}.".startswith(f"{name}."))
    where = next((origin[key] for key in related), path)
    if item["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        known = _known_names(location[:-1])
        close = difflib.get_close_matches(location[-1], known, n=1)
        parent = ".".join(location[:-1])
        hint = f"did you mean {'.'.join([*location[:-1], close[0]])}?" if close else _elsewhere(location[-1])
        hint = hint or f"{parent or 'the settings'} has: {', '.join(known)}"
        return f"{where}: unknown setting {name}; {hint}"
    if item["type"] in ("missing", "missing_keyword_only_argument"):
        return f"{where}: the setting {name} is missing; configs/README.md says what it is"
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "string_type":
        message += " (put it in quotes)"
    found = "" if isinstance(item["input"], dict) else f", found {item['input']!r}"
    return f"{where}: {name + ': ' if name else ''}{message}{found}"


def _known_names(location: list[str]) -> list[str]:
    """Names of the settings in the part at ``location``."""
    part: Any = Settings
    for key in location:
        annotation = get_type_hints(part).get(key)
        options = (annotation, *get_args(annotation))
        part = next((option for option in options if dataclasses.is_dataclass(option) or _is_part(option)), None)
        if part is None:
            return []
    return (
        [field.name for field in dataclasses.fields(part)] if dataclasses.is_dataclass(part) else [*part.model_fields]
    )


def _elsewhere(key: str) -> str | None:
    """A hint for a setting that exists in another part."""
    for part, field in Settings.model_fields.items():
        if _is_part(field.annotation) and key in field.annotation.model_fields:
            return f"did you mean {part}.{key}?"
    return None


def _is_part(annotation: Any) -> TypeGuard[type[BaseModel]]:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)
