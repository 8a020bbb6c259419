"""``tunesmith tuners``: the catalogue, and what each method costs in a model."""

from __future__ import annotations

from typer.testing import CliRunner, Result

from tunesmith.cli import app


def tuners(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["tuners", *arguments], env={"COLUMNS": "120"})


def test_the_list_is_narrowed() -> None:
    result = tuners("--family", "prompt")
    assert result.exit_code == 0, result.stderr
    assert "prefix_tuning" in result.stdout
    assert "lora" not in result.stdout
    some = int(result.stdout.split()[-2])
    everything = int(tuners("--family", "prompt", "--all").stdout.split()[-2])
    assert everything > some
    assert "BitFit" in tuners("--all", "--mergeable").stdout
    assert "Prefix-Tuning" not in tuners("--mergeable").stdout


def test_sizes_in_a_model(tiny_model_dir: str) -> None:
    result = tuners("--model", tiny_model_dir, "--family", "selective")
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    names = [line.split()[0] for line in lines if line and not line.startswith((" ", "-"))]
    assert "ln_tuning" in names
    assert names.index("ln_tuning") < names.index("full")
    assert "memory in GB" in result.stdout


def test_what_is_not_there(tmp_path: object) -> None:
    result = tuners("--model", f"{tmp_path}/nothing")
    assert result.exit_code == 2
    assert "Traceback" not in result.stderr
    result = tuners("--family", "soft")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "The 'family' parameter of find must be one of" in result.stderr
