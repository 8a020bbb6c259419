"""Secrets and personal data: what is found, what is left out, and that nothing is shown whole."""

from __future__ import annotations

import pytest

from tunesmith.look import find_secrets
from tunesmith.look.secrets import KINDS, mask_secrets

FOUND = {
    "private key": "-----BEGIN RSA PRIVATE KEY-----\nMIIE",
    "AWS access key": "aws AKIAIOSFODNN7ABCDEFG end",
    "GitHub token": "ghp_" + "0aB1" * 9,
    "Hugging Face token": "hf_" + "abcdeFGHIJ" * 4,
    "OpenAI or Anthropic key": "sk-proj-" + "a1B2c3D4" * 4,
    "Google API key": "AIza" + "Sy0123456789abcdefghijklmnopqrstuvw",
    "Slack token": "xoxb-1234567890-abcdef",
    "Stripe key": "sk_live_" + "4eC39HqLyjWDarjtT1",
    "JSON web token": "eyJhbGciOiJIUzI1.eyJzdWIiOiIxMjM0.SflKxwRJSMeKKF2QT4",
    "password in a URL": "postgres://admin:hunter2@db.host.org/x",
    "e-mail address": "write to jane.doe@corp.co.uk today",
    "card number": "pay with 4539 5787 6362 1486 now",
    "IBAN": "to DE89 3704 0044 0532 0130 00 please",
    "US social security number": "SSN 123-45-6789",
    "phone number": "call +49 30 1234567 or so",
    "public IP address": "from 8.8.8.8 at noon",
}
LEFT_OUT = {
    "example address": "mail info@example.com or a@b.test",
    "sample key": "AKIAIOSFODNN7EXAMPLE",
    "wrong check digit of a card": "4539 5787 6362 1487",
    "all the same digits": "1111 1111 1111 1111 1111",
    "wrong check digits of an IBAN": "DE88 3704 0044 0532 0130 00",
    "private range": "192.168.0.1 and 127.0.0.1 and 10.0.0.7",
    "version with five parts": "v1.2.3.4.5",
    "impossible address": "999.1.1.1",
    "a date and a decimal": "2024-01-02 10:11:12 and 3.141592653589793",
    "a sum": "1,234,567 + 89 = 1234656",
    "a decorator": "@property\ndef f(self): ...",
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_found_once_and_masked(kind: str) -> None:
    text = FOUND[kind]
    (found,) = find_secrets(text)
    assert found.kind == kind
    assert kind == "private key" or "…" in found.masked
    assert kind == "private key" or found.masked not in text
    assert len(found.masked) <= 31


@pytest.mark.parametrize("name", LEFT_OUT)
def test_what_only_looks_like_one_is_left_out(name: str) -> None:
    assert list(find_secrets(LEFT_OUT[name])) == []


def test_a_stretch_counts_once_and_all_are_found() -> None:
    text = " ; ".join(FOUND.values())
    kinds = [secret.kind for secret in find_secrets(text)]
    assert sorted(kinds) == sorted(KINDS)
    starts = [secret.start for secret in find_secrets(text)]
    assert len(set(starts)) == len(starts)


def test_quoting_blots_all_of_them_out() -> None:
    text = " ; ".join(value for kind, value in FOUND.items() if kind != "private key")
    masked = mask_secrets(text)
    assert list(find_secrets(masked)) == []
    assert masked.count("…") == len(FOUND) - 1
    assert mask_secrets("nothing here") == "nothing here"


def test_long_text_without_digits_is_quick_to_pass() -> None:
    assert list(find_secrets("lorem ipsum " * 50_000)) == []
