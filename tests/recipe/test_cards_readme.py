"""A README keeps what its author wrote, to the byte; only our part and our values of the head are renewed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard, ModelCardData

from tunesmith.core.errors import DataError
from tunesmith.recipe.cards import write_card
from tunesmith.recipe.cards.readme import block, head_note

OURS = re.compile(rb"<!-- tunesmith:(\w+) begin.*?<!-- tunesmith:\1 end -->", re.DOTALL)


def card(text: str = "made here", audits: str = "none", made_from: str = "run", **head: Any) -> ModelCard:
    data = ModelCardData(**head)
    parts = [block("model", text, head_note(data.to_dict(), made_from)), block("audits", audits)]
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n# title\n\n" + "\n\n".join(parts) + "\n")


def body(path: Path) -> bytes:
    """What is not ours below the head."""
    data = path.read_bytes()
    found = re.match(rb"\xef\xbb\xbf|", data)
    assert found
    head = re.match(rb"---\r?\n.*?\n---\r?\n", data[found.end() :], re.DOTALL)
    return OURS.sub(b"", data[found.end() + (head.end() if head else 0) :])


def head(path: Path) -> dict[str, Any]:
    return dict(ModelCard(path.read_bytes().decode("utf-8-sig")).data.to_dict())


USERS = [
    "# Mine\n\nMy own words.  \n\ttabs\n",
    "# No line end",
    "---\nlicense: mit # my choice\ntags: [a, b]\n---\n# Mine\n---\nafter a rule\n",
    "---\r\nlicense: mit\r\n---\r\n# Windows\r\n\r\ntext\r\n",
    "\ufeff---\nlanguage: no\n---\n# With a mark\n",
]


@pytest.mark.parametrize("text", USERS)
def test_a_readme_of_the_users_is_kept_to_the_byte(text: str, tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    path.write_bytes(text.encode())
    own = body(path)
    values = head(path)
    write_card(card(license="apache-2.0", tags=["tunesmith"], library_name="peft"), path)
    assert body(path).startswith(own)
    assert body(path)[len(own) :].strip() == b""
    assert head(path) == {"license": "apache-2.0", "tags": ["tunesmith"], "library_name": "peft", **values}
    assert b"made here" in path.read_bytes()
    assert path.read_bytes().startswith(b"\xef\xbb\xbf") == text.startswith("\ufeff")
    newline = b"\r\n" if "\r\n" in text else b"\n"
    assert path.read_bytes().count(b"\n") == path.read_bytes().count(newline)
    # again, with other contents: only what is between the marks differs
    first, outside = path.read_bytes(), body(path)
    write_card(card("made again", license="bsd", tags=["tunesmith"], library_name="peft"), path)
    assert body(path) == outside
    assert b"made again" in path.read_bytes()
    assert b"made here" not in path.read_bytes()
    assert first.count(b"tunesmith:model begin") == path.read_bytes().count(b"tunesmith:model begin") == 1


def test_a_comment_in_the_head_stays(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    path.write_text(USERS[2])
    write_card(card(license="apache-2.0", library_name="peft"), path)
    assert path.read_text().startswith(
        "---\nlicense: mit # my choice\ntags: [a, b]\nlibrary_name: peft\n---\n"
    )


def test_a_value_belongs_to_who_wrote_it_last(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    write_card(card(license="mit", library_name="peft", tags=["tunesmith"], base_model="a/b"), path)
    path.write_text(path.read_text().replace("license: mit", "license: gpl-3.0"))
    write_card(card(license="apache-2.0", library_name="transformers", tags=["tunesmith", "mig"]), path)
    assert head(path) == {
        "license": "gpl-3.0",  # the user's
        "library_name": "transformers",  # ours, renewed
        "tags": ["tunesmith", "mig"],
    }  # and what we no longer say is gone
    write_card(card(license="apache-2.0", library_name="transformers", tags=["tunesmith", "mig"]), path)
    assert head(path)["license"] == "gpl-3.0"


def test_a_text_above_and_below_the_marks_stays(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    write_card(card(), path)
    text = path.read_text().replace("# title", "# My title\n\nabove") + "\nbelow\n"
    text = text.replace("<!-- tunesmith:audits begin", "between\n<!-- tunesmith:audits begin")
    path.write_text(text)
    write_card(card("new", "new too"), path)
    assert path.read_text() == text.replace("made here", "new").replace("none", "new too")


def test_nothing_is_written_where_nothing_changes(tmp_path: Path) -> None:
    path = write_card(card(license="mit"), tmp_path / "README.md")
    before = path.stat().st_ino
    write_card(card(license="mit"), path)
    assert path.stat().st_ino == before
    write_card(card("new", license="mit"), path)
    assert path.stat().st_ino != before


def test_what_is_known_of_a_run_is_not_replaced_by_less(tmp_path: Path) -> None:
    path = write_card(card("of a run", license="mit", library_name="peft"), tmp_path / "README.md")
    write_card(card("of a folder", "an audit", made_from="folder", library_name="x"), path)
    assert "of a run" in path.read_text()
    assert "of a folder" not in path.read_text()
    assert "an audit" in path.read_text()
    assert head(path) == {"license": "mit", "library_name": "peft"}
    write_card(card("of a second run", "an audit", library_name="y"), path)
    assert "of a second run" in path.read_text()
    assert head(path) == {"library_name": "y"}


def test_a_blank_template_counts_as_nothing_and_a_filled_one_does_not(tmp_path: Path) -> None:
    blank = ModelCard.from_template(ModelCardData())
    blank.data["base_model"] = "/home/me/model"  # as PEFT does it
    path = tmp_path / "README.md"
    path.write_text(f"{blank}\n### Framework versions\n\n- PEFT 0.21.2")
    write_card(card(license="mit"), path)
    assert path.read_text() == f"{str(card(license='mit')).rstrip()}\n"
    filled = str(blank).replace("[More Information Needed]", "A plum.", 1)
    path.write_text(filled)
    write_card(card(license="mit"), path)
    assert "A plum." in path.read_text()
    assert head(path) == {"base_model": "/home/me/model", "license": "mit"}


BY_HAND = "Repair it by hand; nothing was written."
END = "expected ',' or ']', but got '<stream end>'"


def marks(name: str, found: str) -> str:
    return (
        f"the marks 'tunesmith:{name} begin' and 'tunesmith:{name} end' must stand once each, in this order and not "
        f"inside other marks; found {found}. Repair or remove them by hand; nothing was written."
    )


B, E = "<!-- tunesmith:{} begin -->", "<!-- tunesmith:{} end -->"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("---\nlicense: [mit\n---\n# x\n",
         f"the YAML head of the README cannot be read in line 2: {END}. {BY_HAND}"),
        ("---\n- mit\n---\n", f"the YAML head of the README is no mapping of names to values. {BY_HAND}"),
        ("---\nlicense: mit\n# x\n",
         f"the README begins with --- but its YAML head is not closed by another ---. {BY_HAND}"),
        (B.format("model") + "text", marks("model", "begin")),
        (E.format("model") + B.format("model"), marks("model", "end begin")),
        (B.format("model") + B.format("audits") + E.format("model"), marks("audits", "begin")),
        (2 * (B.format("model") + E.format("model")), marks("model", "begin end begin end")),
    ],
)  # fmt: skip
def test_a_readme_that_cannot_be_read_is_left_alone(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    path.write_text(text)
    with pytest.raises(DataError) as caught:
        write_card(card(), path)
    assert str(caught.value) == f"{path}: {said}"
    assert path.read_text() == text


def test_a_readme_in_another_encoding_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    path.write_bytes(b"caf\xe9")
    with pytest.raises(DataError) as caught:
        write_card(card(), path)
    assert str(caught.value) == (
        f"{path}: the file is not UTF-8 text, so nothing is written into it. Save it as UTF-8, or give --out."
    )
    assert path.read_bytes() == b"caf\xe9"
