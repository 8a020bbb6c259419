"""Where data and models come from, as a card may say it: ids of the Hub, names and hashes; no path, no secret."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from tunesmith.core.files import hash_json, hash_text
from tunesmith.recipe.report.files import RunFiles

__all__ = ["Origin", "base_origin", "data_origin", "model_origin", "names_only", "scrubbed"]

# What the bundled model's GGUF file says of itself (general.organization, general.license, general.languages).
BUNDLED = {
    "smollm2-135m-instruct": (
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        {"license": "apache-2.0", "language": "en"},
    ),
    "minilm": (
        "sentence-transformers/all-MiniLM-L6-v2",
        {"license": "apache-2.0", "language": "en"},  # its README
    ),
}
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_DATA_ENDINGS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".txt", ".gz", ".yaml")
_SECRET_KEY = re.compile(
    r"(?i)(api[_-]?key|secret|passw(or)?d|authorization|credential|bearer|((^|[_-])(access|auth|hf|hub|api)[_-]?token$))"
)
_SECRET = re.compile(
    r"\b(hf_[A-Za-z0-9]{16,}|sk-[\w-]{16,}|gh[pousr]_\w{20,}|AKIA[0-9A-Z]{12,}|xox[abp]-[\w-]{10,})"
)
_LOGIN = re.compile(r"://[^/@\s]+@")
_PATH = re.compile(
    r"(?<![\w:/\\.])(?:~[\w.-]*|[A-Za-z]:|\.{1,2})?(?:[\\/][^\s\\/:*?\"'<>|,;()\[\]]+){2,}[\\/]?"
)


@dataclass(frozen=True)
class Origin:
    """A data source or a model.

    Attributes:
        name: what is shown: a Hub id, a bundled name, or the last part of a path.
        hub_id: for the metadata of a card; None where it is no repository of the Hub.
        digest: SHA-256 of the content, for a Hub id that of its name.
        local: whether it is a file or folder of the user's.
        alias: whether it is a bundled model.
        facts: what its own card says, such as ``license`` and ``language``.
    """

    name: str
    hub_id: str | None = None
    digest: str | None = None
    local: bool = False
    alias: bool = False
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def license(self) -> str | None:
        """The licence's id, where the card of the model or set names one."""
        value = self.facts.get("license")
        return value if isinstance(value, str) and value else None


def data_origin(files: RunFiles, which: str) -> Origin | None:
    """Return where the rows of ``which`` (``train``, ``validation``, ``test``) came from; None without such rows."""
    source = (files.recipe.get("data") or {}).get(which)
    if not isinstance(source, str):
        return None
    digest = (files.lock.get("hashes") or {}).get(which)
    if source.startswith("demo:"):
        return Origin(source, digest=digest)
    repository = source.partition("#")[0]
    # a path's hash is that of its content, so only a name that is no path has the hash of its text
    if digest in (None, hash_text(source)) and _is_hub_id(repository):
        return Origin(source, repository, digest, facts=_cached_card(repository, "dataset"))
    folder = Path(repository).expanduser()
    return Origin(_last_part(source), None, digest, local=True, facts=_card_in(folder))


def model_origin(files: RunFiles) -> Origin | None:
    """Return the base model of a run; None where the recipe has none."""
    spec = files.recipe.get("model")
    if not isinstance(spec, dict) or not isinstance(spec.get("id"), str):
        return None
    name, revision = spec["id"], spec.get("revision")
    digest = (files.lock.get("hashes") or {}).get("model")
    named = hash_json([hash_text(name, revision or "main"), bool(spec.get("trust_remote_code"))])
    return base_origin(name, digest, hub=digest in (None, named), revision=revision)


def base_origin(
    name: str, digest: str | None = None, *, hub: bool = True, revision: str | None = None
) -> Origin:
    """Return where a model comes from.

    Args:
        name: as the recipe or the adapter's config has it.
        digest: of its content, where it is known.
        hub: whether it may be an id of the Hub.
        revision: on the Hub.
    """
    if name.lower() in BUNDLED:
        hub_id, facts = BUNDLED[name.lower()]
        return Origin(name.lower(), hub_id, digest, alias=True, facts=facts)
    if hub and _is_hub_id(name):
        return Origin(name, name, digest, facts=_cached_card(name, "model", revision))
    return Origin(_last_part(name), None, digest, local=True, facts=_card_in(Path(name).expanduser()))


def _is_hub_id(name: str) -> bool:
    return (
        bool(_HUB_ID.fullmatch(name))
        and not name.lower().endswith(_DATA_ENDINGS)
        and not Path(name).expanduser().exists()
    )


def _last_part(text: str) -> str:
    windows = "\\" in text and "/" not in text
    return (PureWindowsPath(text) if windows else PurePosixPath(text)).name or "."


def _card_in(folder: Path) -> dict[str, Any]:
    """Return what the README of a folder says in its head, or its config about the licence."""
    facts = _head_of(folder / "README.md")
    if "license" not in facts and (folder / "config.json").is_file():
        from tunesmith.core.files import read_json

        try:
            found = read_json(folder / "config.json").get("license")
        except (OSError, ValueError, AttributeError):
            found = None
        facts |= {"license": found} if isinstance(found, str) else {}
    return facts


def _cached_card(repository: str, kind: str, revision: str | None = None) -> dict[str, Any]:
    """Return the head of a repository's README if it is in the local cache of the Hub; nothing is fetched."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repository, "README.md", repo_type=kind, revision=revision)
    return _head_of(Path(found)) if isinstance(found, str) else {}


def _head_of(readme: Path) -> dict[str, Any]:
    import yaml  # type: ignore[import-untyped]
    from huggingface_hub.repocard import REGEX_YAML_BLOCK

    try:
        found = REGEX_YAML_BLOCK.search(readme.read_text(encoding="utf-8-sig"))
        values = yaml.safe_load(found.group(2)) if found else None
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return {}
    return values if isinstance(values, dict) else {}


def names_only(text: Any) -> str:
    """Return a text in which paths are cut to their last part, and what looks like a key or login is blotted out."""
    text = _SECRET.sub("(hidden)", _LOGIN.sub("://", str(text)))
    return _PATH.sub(lambda found: _last_part(found.group(0).rstrip("/\\")), text)


def scrubbed(files: RunFiles) -> dict[str, Any]:
    """Return the resolved recipe with local paths cut to names and secrets hidden."""
    recipe: dict[str, Any] = _scrub(files.recipe)
    data = recipe.get("data")
    if isinstance(data, dict):
        for which in ("train", "validation", "test"):
            if (origin := data_origin(files, which)) is not None:
                data[which] = origin.name
    model = model_origin(files)
    if model is not None:
        recipe["model"]["id"] = model.name
    return recipe


def _scrub(value: Any, key: str = "") -> Any:
    if isinstance(value, dict):
        return {str(name): _scrub(inner, str(name)) for name, inner in value.items()}
    if isinstance(value, list):
        return [_scrub(inner, key) for inner in value]
    if not isinstance(value, str):
        return value
    if _SECRET_KEY.search(key):
        return "(hidden)"
    outside = value.startswith(("/", "~", "./", "../", ".\\", "\\\\")) or re.match(r"[A-Za-z]:[\\/]", value)
    local = "\n" not in value and (
        outside or (("/" in value or "\\" in value) and not _HUB_ID.fullmatch(value))
    )
    if local and "://" not in value and " " not in value:
        return _last_part(value.rstrip("/\\"))
    if _HUB_ID.fullmatch(value) and (
        value.lower().endswith(_DATA_ENDINGS) or Path(value).expanduser().exists()
    ):
        return _last_part(value)
    return names_only(value)
