"""Put a card into a README without touching what others wrote there.

Our sections stand between two marks, ``<!-- tunesmith:NAME begin … -->`` and ``<!-- tunesmith:NAME end -->``. Only what
is between them is replaced; every other byte of the text stays. Of the YAML head a key belongs to whoever wrote its
value last: the opening mark keeps a hash of each value that we wrote, so a value that was changed by hand is known as
the user's, and stays.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from tunesmith.core.errors import DataError
from tunesmith.core.files import atomic_open, hash_json

__all__ = ["block", "head_note", "holds", "is_blank_template", "merged", "write_card"]

_MARK = re.compile(r"<!-- tunesmith:(\w+) (begin|end)\b([^>]*)-->")
_KEY = re.compile(r"^[^\s#'\"\-][^:\n]*:(?=\s|$)")
_BOM = "\ufeff"


def block(name: str, text: str, note: str = "") -> str:
    """Return ``text`` between the marks of the block ``name``.

    Args:
        name: letters, digits and underscores.
        text: Markdown; it must hold no mark of its own.
        note: what to remember in the opening mark, for `merged`.
    """
    note = f" {note}" if note else ""
    hint = "what is between the two marks is replaced, the rest is yours"
    return f"<!-- tunesmith:{name} begin ({hint}){note} -->\n{text.strip()}\n<!-- tunesmith:{name} end -->"


def head_note(values: dict[str, Any], made_from: str) -> str:
    """Return the note that says which values of the head are ours, and what the card was made from."""
    keys = ",".join(f"{key}:{_digest(value)}" for key, value in values.items())
    return f"from={made_from} head={keys}"


def _digest(value: Any) -> str:
    return hash_json(value)[:8]


def write_card(card: Any, path: str | os.PathLike[str]) -> Path:
    """Write a card as a README, or renew the part that is ours in one that is there.

    A blank template that PEFT left counts as nothing; any other text is kept to the byte outside our marks. The file
    is written whole or not at all, and not at all where nothing changes.

    Args:
        card: from `model_card` or `data_card`.
        path: of the README.

    Raises:
        DataError: the present file is not UTF-8, its YAML head cannot be read, or a mark has lost its partner. The
            file is left as it is.
    """
    target = Path(path)
    fresh = f"{str(card).rstrip()}\n"
    before = target.read_bytes() if target.exists() else None
    text = fresh if before is None else _renewed(before, card, target, fresh)
    after = text.encode("utf-8")
    if after != before:
        with atomic_open(target, "wb") as stream:
            stream.write(after)
    return target


def holds(path: Path, card: Any, name: str) -> bool:
    """Say whether a README has the block ``name`` of a card already, word by word."""
    start, end = _blocks(card.text, str(path))[name]
    try:
        text = path.read_text(encoding="utf-8")  # line ends of Windows are read as ours
    except (OSError, UnicodeDecodeError):
        return False
    return card.text[start:end] in text


def _renewed(before: bytes, card: Any, target: Path, fresh: str) -> str:
    try:
        text = before.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            "the file is not UTF-8 text, so nothing is written into it. Save it as UTF-8, or give --out.",
            source=str(target),
        ) from error
    if not text.strip(f"{_BOM} \t\r\n") or is_blank_template(text):
        return fresh
    return merged(text, card, str(target))


def is_blank_template(text: str) -> bool:
    """Say whether a README is the Hub's model-card template as PEFT writes it, with nothing filled in."""
    from huggingface_hub import ModelCard, ModelCardData
    from huggingface_hub.repocard import REGEX_YAML_BLOCK

    head = REGEX_YAML_BLOCK.search(text)
    body = text[head.end() :] if head else text
    body = re.sub(r"### Framework versions\s+(- .*\s*)+\Z", "", body)
    return body.split() == ModelCard.from_template(ModelCardData()).text.split()


def merged(text: str, card: Any, source: str) -> str:
    """Return a README with our blocks and our values of the head renewed.

    A block ``model`` that was made from a run is not replaced by one made from the folder alone, which knows less.

    Args:
        text: the README as it is.
        card: the new card.
        source: the file's name, for errors.

    Raises:
        DataError: the YAML head cannot be read, or marks are unbalanced.
    """
    bom = _BOM if text.startswith(_BOM) else ""
    text = text.removeprefix(_BOM)
    newline = "\r\n" if "\r\n" in text else "\n"
    opening, head, closing, body = _parts(text, source)
    values = _values(head, source)
    old, new = _blocks(body, source), _blocks(card.text, source)
    notes = [body[start:end].partition("-->")[0] for start, end in old.values()]
    keep = any("from=run" in note for note in notes) and "from=folder" in card.text
    if keep:
        new.pop("model", None)
    written = dict(pair.split(":", 1) for note in notes for pair in _written(note))
    mine = card.data.to_dict()
    ours = (
        set()
        if keep
        else {k for k, v in values.items() if written.get(k) == _digest(v) or (v is None and k in mine)}
    )
    body = _with_blocks(
        body, old, {name: card.text[start:end] for name, (start, end) in new.items()}, newline
    )
    wanted = {k: v for k, v in values.items() if k not in ours} | {
        k: v for k, v in mine.items() if k in ours or k not in values
    }
    if wanted != values:
        head = _new_head(head, values, wanted, newline)
        opening, closing = opening or f"---{newline}", closing or f"{newline}---{newline}"
    return f"{bom}{opening}{head}{closing}{body}"


def _parts(text: str, source: str) -> tuple[str, str, str, str]:
    """Return what opens the head, the head, what closes it, and the text after it."""
    from huggingface_hub.repocard import REGEX_YAML_BLOCK

    found = REGEX_YAML_BLOCK.search(text)
    if found:
        return found.group(1), found.group(2), found.group(3), text[found.end() :]
    if text.lstrip().startswith("---"):
        raise DataError(
            "the README begins with --- but its YAML head is not closed by another ---. Repair it by hand; nothing "
            "was written.",
            source=source,
        )
    return "", "", "", text


def _values(head: str, source: str) -> dict[str, Any]:
    import yaml  # type: ignore[import-untyped]

    try:
        values = yaml.safe_load(head)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 2}" if mark is not None else ""
        raise DataError(
            f"the YAML head of the README cannot be read{where}: {getattr(error, 'problem', None) or error}. Repair it "
            "by hand; nothing was written.",
            source=source,
        ) from error
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise DataError(
            "the YAML head of the README is no mapping of names to values. Repair it by hand; nothing was written.",
            source=source,
        )
    return values


def _blocks(text: str, source: str) -> dict[str, tuple[int, int]]:
    """Return where each block stands, its marks included."""
    found: dict[str, tuple[int, int]] = {}
    open_: tuple[str, int] | None = None
    for mark in _MARK.finditer(text):
        name, kind = mark.group(1), mark.group(2)
        if kind == "begin" and open_ is None and name not in found:
            open_ = name, mark.start()
        elif kind == "end" and open_ is not None and open_[0] == name:
            found[name] = open_[1], mark.end()
            open_ = None
        else:
            raise _unbalanced(name, text, source)
    if open_ is not None:
        raise _unbalanced(open_[0], text, source)
    return found


def _unbalanced(name: str, text: str, source: str) -> DataError:
    kinds = [mark.group(2) for mark in _MARK.finditer(text) if mark.group(1) == name]
    return DataError(
        f"the marks 'tunesmith:{name} begin' and 'tunesmith:{name} end' must stand once each, in this order and not "
        f"inside other marks; found {' '.join(kinds)}. Repair or remove them by hand; nothing was written.",
        source=source,
    )


def _written(note: str) -> list[str]:
    found = re.search(r"head=(\S+)", note)
    return found.group(1).split(",") if found else []


def _with_blocks(body: str, old: dict[str, tuple[int, int]], new: dict[str, str], newline: str) -> str:
    for name, (start, end) in sorted(old.items(), key=lambda item: -item[1][0]):
        if name in new:
            body = body[:start] + new[name].replace("\n", newline) + body[end:]
    for name, text in new.items():
        if name not in old:
            gap = newline if body.endswith(newline) or not body else 2 * newline
            body = body + gap + text.replace("\n", newline) + newline
    return body


def _new_head(head: str, values: dict[str, Any], wanted: dict[str, Any], newline: str) -> str:
    """Return the head with other values; lines whose value stays are kept as they are, comments included."""
    import yaml
    from huggingface_hub.repocard_data import CardData

    stay = {key for key, value in values.items() if key in wanted and wanted[key] == value}
    lines, keep = [], True
    for line in head.splitlines():
        if _KEY.match(line):
            keep = line.partition(":")[0].strip() in stay
        if keep:
            lines.append(line)
    more = {key: value for key, value in wanted.items() if key not in stay}
    text = newline.join([*lines, *([CardData(**more).to_yaml(line_break=newline)] if more else [])])
    try:
        if yaml.safe_load(text) == wanted:
            return text
    except yaml.YAMLError:
        pass
    return str(CardData(**wanted).to_yaml(line_break=newline, original_order=list(values)))
