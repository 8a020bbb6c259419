"""Secrets and personal data by pattern: keys, tokens, addresses, card and account numbers.

A pattern says "looks like one": what has a check digit (cards, IBANs) is checked, what is made up for examples
(addresses at example.com, the documented sample keys, private and reserved IP ranges) is left out. Findings are
always masked, so that the report does not spread what it warns of.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

__all__ = ["KINDS", "Secret", "find_secrets", "mask_secrets"]


@dataclass(frozen=True)
class Secret:
    """A find.

    Attributes:
        kind: what it looks like, a key of `KINDS`.
        masked: the text with all but its ends blotted out.
        start, end: where it stands.
    """

    kind: str
    masked: str
    start: int
    end: int


def _luhn(text: str) -> bool:
    digits = [int(c) for c in text if c.isdigit()]
    if not 13 <= len(digits) <= 19 or len(set(digits)) < 3:
        return False
    doubled = [d if i % 2 == 0 else d * 2 - 9 * (d > 4) for i, d in enumerate(reversed(digits))]
    return sum(doubled) % 10 == 0


def _iban(text: str) -> bool:
    plain = re.sub(r"\s", "", text).upper()
    if not 15 <= len(plain) <= 34:
        return False
    return int("".join(str(int(c, 36)) for c in plain[4:] + plain[:4])) % 97 == 1


def _public_ip(text: str) -> bool:
    try:
        return ipaddress.ip_address(text).is_global
    except ValueError:
        return False


def _real_mail(text: str) -> bool:
    domain = text.rsplit("@", 1)[1].casefold()
    made_up = ("example.com", "example.org", "example.net", "test.com", "domain.com", "email.com")
    return not domain.endswith((*made_up, ".example", ".test", ".invalid", ".local", ".localhost"))


def _phone(text: str) -> bool:
    return 9 <= sum(c.isdigit() for c in text) <= 15


def _not_sample(text: str) -> bool:
    return "EXAMPLE" not in text.upper()


Check = Callable[[str], bool]
_ANY: Check = lambda text: True  # noqa: E731

# Kind -> pattern, the characters of which one must occur for the pattern to be tried at all, and the check of a find.
_PATTERNS: dict[str, tuple[str, str, Check]] = {
    "private key": (r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY(?: BLOCK)?-----", "-----BEGIN", _ANY),
    "AWS access key": (r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b", "A", _not_sample),
    "GitHub token": (r"\b(?:gh[pousr]_[0-9A-Za-z]{36,}|github_pat_[0-9A-Za-z_]{50,})", "g", _ANY),
    "Hugging Face token": (r"\bhf_[A-Za-z]{30,}\b", "hf_", _ANY),
    "OpenAI or Anthropic key": (r"\bsk-(?:ant-|proj-)?[0-9A-Za-z_-]{20,}\b", "sk-", _ANY),
    "Google API key": (r"\bAIza[0-9A-Za-z_-]{35}\b", "AIza", _ANY),
    "Slack token": (r"\bxox[abeoprs]-[0-9A-Za-z-]{10,}", "xox", _ANY),
    "Stripe key": (r"\b[rs]k_live_[0-9A-Za-z]{16,}\b", "k_live_", _ANY),
    "JSON web token": (r"\beyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]{8,}", "eyJ", _ANY),
    "password in a URL": (r"\b[a-z][a-z0-9+.-]*://[^\s/:@]+:[^\s/:@]{3,}@[\w.-]+", "://", _not_sample),
    "e-mail address": (r"\b[\w.+-]+@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*\.[A-Za-z]{2,}\b", "@", _real_mail),
    "card number": (r"(?<![\d.-])\d(?:[ -]?\d){12,18}(?![\d.-])", "", _luhn),
    "IBAN": (r"\b[A-Z]{2}\d{2}(?: ?[0-9A-Z]{4}){2,7}(?: ?[0-9A-Z]{1,3})?\b", "", _iban),
    "US social security number": (
        r"(?<![\d-])(?!000|666|9)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\d-])",
        "-",
        _ANY,
    ),
    "phone number": (
        r"(?<![\w.+-])(?:\+\d{1,3}[ .-]?(?:\(\d{1,4}\)[ .-]?)?\d{1,4}(?:[ .-]?\d{2,4}){2,4}"
        r"|\(\d{3}\) ?\d{3}[ .-]\d{4}|\d{3}[.-]\d{3}[.-]\d{4})(?![\w-])",
        "",
        _phone,
    ),
    "public IP address": (r"(?<![\d.])(?:\d{1,3}\.){3}\d{1,3}(?![\d.])", ".", _public_ip),
}
KINDS = tuple(_PATTERNS)
_COMPILED = {kind: (re.compile(p), need, check) for kind, (p, need, check) in _PATTERNS.items()}
_NEEDS_DIGIT = frozenset(
    {"card number", "IBAN", "phone number", "US social security number", "public IP address"}
)
_MANY_DIGITS = re.compile(r"\d[\d .()-]{5,}\d")


def find_secrets(text: str) -> Iterator[Secret]:
    """Yield what looks like a secret or personal data, masked.

    A stretch of text counts once, as the first of `KINDS` that takes it. Time linear in the text; a cheap test
    for a substring goes before each pattern.

    Example:
        >>> [s.masked for s in find_secrets("write to jane.doe@corp.com, not to info@example.com")]
        ['ja…om']
    """
    taken: list[tuple[int, int]] = []
    numbers = _MANY_DIGITS.search(text) is not None
    for kind, (pattern, need, check) in _COMPILED.items():
        if (kind in _NEEDS_DIGIT and not numbers) or need not in text:
            continue
        for match in pattern.finditer(text):
            start, end = match.span()
            if any(start < b and a < end for a, b in taken) or not check(match.group()):
                continue
            taken.append((start, end))
            yield Secret(kind, _mask(match.group()), start, end)


def mask_secrets(text: str) -> str:
    """Return the text with what `find_secrets` finds blotted out, for quoting.

    Example:
        >>> mask_secrets("write to jane.doe@corp.com")
        'write to ja…om'
    """
    for secret in sorted(find_secrets(text), key=lambda secret: -secret.start):
        text = text[: secret.start] + secret.masked + text[secret.end :]
    return text


def _mask(text: str) -> str:
    if text.startswith("-----"):
        return text
    keep = 2 if len(text) < 20 else 4
    return f"{text[:keep]}…{text[-keep:] if keep == 2 else text[-2:]}"
