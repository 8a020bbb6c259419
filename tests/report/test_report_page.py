"""The report is whole, safe and honest for finished, failed, half-finished, single-arm and damaged runs."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from fake_run import HOSTILE, fail_in_training, read_events, write_events, write_run

from tunesmith.core.errors import RunDirectoryError
from tunesmith.recipe.report import write_report

SECTIONS = ("comparison", "choice", "examples", "data", "preflight", "training", "cost", "reproduce")
VOID = {"meta", "br", "link", "input", "img", "hr"}


class Outline(HTMLParser):
    """Collects ids, texts by tag and attributes, and checks that every element is closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.loads: list[str] = []
        self.tags: list[str] = []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        given = dict(attrs)
        if given.get("id"):
            self.ids.append(str(given["id"]))
        self.loads += [str(given[k]) for k in ("src", "href", "xlink:href", "srcset") if given.get(k)]
        if tag not in VOID and not str(self.get_starttag_text()).endswith("/>"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if self.open and self.open[-1] == tag:
            self.open.pop()
        elif tag in self.open:
            raise AssertionError(f"</{tag}> closes <{self.open[-1]}>")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "finished")


@pytest.fixture(scope="module")
def html(finished: Path) -> str:
    """The page of the finished run, made once."""
    return page(finished)


@pytest.fixture
def run_copy(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run to change. Its figures are empty: drawing takes seconds, and these tests read the text."""
    from tunesmith.recipe.report import figures

    for name in figures.__all__:
        monkeypatch.setattr(figures, name, lambda *args, **kwargs: "<svg></svg>")
    return Path(shutil.copytree(finished, tmp_path / "run"))


def page(root: Path) -> str:
    return write_report(root).read_text(encoding="utf-8")


def headline(html: str) -> str:
    return re.search(r"<h1[^>]*>(.*?)</h1>", html, re.DOTALL)[1]  # type: ignore[index]


def section(html: str, name: str) -> str:
    return re.search(rf'<section id="{name}">.*?</section>', html, re.DOTALL)[0]  # type: ignore[index]


def edit(path: Path, change: Any) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def test_a_finished_run_has_every_section_and_nothing_missing(html: str) -> None:
    outline = Outline(html)
    assert set(SECTIONS) <= set(outline.ids)
    assert len(outline.ids) == len(set(outline.ids))
    assert 'class="missing"' not in html
    assert "could not be made" not in html
    # 3 maps, 2 forests, clusters + family + defect, 2 histograms (random ranks nothing), losses
    assert outline.tags.count("svg") == 3 + 2 + 3 + 2 + 1


def test_the_page_loads_nothing_and_runs_nothing(html: str) -> None:
    outline = Outline(html)
    assert all(link.startswith("#") for link in outline.loads)
    assert "script" not in outline.tags
    assert not re.search(r"@import|url\((?!#)", html)


def test_user_text_is_escaped_and_shown_as_it_is(html: str) -> None:
    assert HOSTILE not in html
    assert "&lt;script&gt;alert" in section(html, "examples")
    assert "\\frac{1}{2}" in section(html, "examples")
    assert "&lt;i&gt;no&lt;/i&gt;" in section(html, "preflight")


def test_hostile_labels_in_a_figure_stay_text() -> None:
    from tunesmith.recipe.report import figures, style

    svg = figures.shares(
        [HOSTILE, "$x^1"], [0.4, 0.6], {"mig": [0.5, 0.5]}, style.arm_colours(["mig"], None), "f", HOSTILE
    )
    outline = Outline(svg)
    assert "script" not in outline.tags
    assert "$x^1" in svg


def test_headline_names_winner_size_and_interval(finished: Path, html: str) -> None:
    pair = next(
        p
        for p in json.loads((finished / "compare.json").read_text())["pairs"]
        if (p["arm"], p["baseline"], p["metric"]) == ("mig", "random", "task_score")
    )
    assert headline(html) == (
        f"MIG beats random by {pair['delta']:.2f} [{pair['low']:.2f}, {pair['high']:.2f}] in task score "
        "at 40 training rows each."
    )


NO_DIFFERENCE = (
    "No clear difference: MIG differs from random by +0.02 [−0.05, 0.09] in task score at 40 training rows "
    "each, and the interval includes zero."
)
WORSE = "MIG is worse than random by 0.20 [0.10, 0.31] in task score at 40 training rows each."
SMALL = "MIG beats random by 0.0012 [0.0004, 0.0020] in task score at 40 training rows each."


@pytest.mark.parametrize(
    ("delta", "low", "high", "expected", "tone"),
    [
        (0.02, -0.05, 0.09, NO_DIFFERENCE, "unclear"),
        (-0.2, -0.31, -0.1, WORSE, "worse"),
        (0.0012, 0.0004, 0.002, SMALL, "better"),
    ],
)
def test_headline_is_honest(
    run_copy: Path, delta: float, low: float, high: float, expected: str, tone: str
) -> None:
    def change(value: dict[str, Any]) -> None:
        for pair in value["pairs"]:
            if pair["metric"] == "task_score":
                pair |= {"delta": delta, "low": low, "high": high}

    edit(run_copy / "compare.json", change)
    html = page(run_copy)
    assert headline(html) == expected
    assert f'<h1 class="{tone}">' in html


def test_lower_is_better_turns_the_verdict(run_copy: Path) -> None:
    edit(run_copy / "compare.json", lambda value: value.update(metrics=["perplexity"]))
    html = page(run_copy)
    assert headline(html).startswith("MIG beats random by 0.")
    assert "in nats per held-out token (lower is better)" in headline(html)


def test_best_of_several_and_single_seed_are_qualified(run_copy: Path, tmp_path: Path) -> None:
    assert "MIG is the best of 2 methods tried; the interval is not widened" in page(run_copy)
    single = page(write_run(tmp_path / "single", arms=("mig",), seeds=(0,), n_pool=60, n_test=20, budget=10))
    assert headline(single).startswith("The model tuned on the rows of MIG beats the untuned base model by ")
    assert "and 1 seed; another seed may move the result" in single
    assert "could not be made" not in single


def test_equal_budget_is_claimed_only_where_it_holds(run_copy: Path) -> None:
    for seed in (0, 1, 2):
        path = run_copy / "arms" / "random" / f"seed-{seed}" / "select" / "selection.json"
        edit(path, lambda value: value.update(n_selected=41))
    assert headline(page(run_copy)).endswith("at 40 training rows.")


def test_a_failed_run_says_where_and_why_and_shows_the_rest(run_copy: Path) -> None:
    html = page(fail_in_training(run_copy, "mig", 1))
    Outline(html)
    assert (
        "The run failed in the stage train of MIG (seed 1): "
        "TrainingError: The loss is not finite (nan) at step 3." in html
    )
    assert "No interval has been computed yet" in headline(html)
    assert "MIG 0." in headline(html)
    assert "(2 of 3 seeds)" in headline(html)
    assert "Intervals are missing: compare.json was not written. Not evaluated: MIG (seed 1)." in html
    assert "<svg" in section(html, "choice")
    assert "could not be made" not in html


def test_losses_of_a_failed_training_come_from_the_event_log(run_copy: Path) -> None:
    from tunesmith.recipe.report.files import RunFiles

    fail_in_training(run_copy, "mig", 1)
    run = next(r for r in RunFiles(run_copy).runs if (r.arm, r.seed) == ("mig", 1))
    assert run.losses == [(1.0, 2.5), (2.0, 4.5)]


def test_a_run_killed_in_its_first_stage(tmp_path: Path) -> None:
    write_events(
        tmp_path,
        [{"kind": "run", "status": "started"}, {"kind": "stage", "stage": "data", "status": "started"}],
    )
    html = page(tmp_path)
    assert headline(html) == "There is no answer yet: no trained model was evaluated."
    assert "it is still running, or was interrupted. Its last stage is data." in html
    assert "The stage data began and did not finish" in section(html, "data")
    assert "The run did not reach the stage select." in section(html, "choice")
    assert set(SECTIONS) <= set(Outline(html).ids)


def test_a_recipe_without_evaluation_says_so(run_copy: Path) -> None:
    text = re.sub(r"  evaluate: .*\n", "", (run_copy / "recipe.lock.yaml").read_text())
    (run_copy / "recipe.lock.yaml").write_text(text)
    (run_copy / "compare.json").unlink()
    for folder in (run_copy / "arms").rglob("evaluate"):
        shutil.rmtree(folder)
    write_events(run_copy, [e for e in read_events(run_copy) if e.get("stage") != "evaluate"])
    html = page(run_copy)
    assert headline(html) == "The recipe has no evaluation, so this run cannot say whether it helped."
    assert "The recipe has no evaluate." in section(html, "comparison")


@pytest.mark.parametrize(
    "name",
    [
        "compare.json",
        "data/report.json",
        "curate/report.json",
        "map/map.npz",
        "recipe.lock.yaml",
        "arms/mig/seed-0/select/selection.json",
        "arms/mig/seed-0/select/indices.npy",
        "arms/mig/seed-0/select/scores.npy",
        "arms/mig/seed-0/train/train.json",
        "arms/mig/seed-0/train/preflight.json",
        "arms/mig/seed-0/evaluate/scores.json",
    ],
)
def test_a_damaged_file_is_named_and_costs_only_its_part(run_copy: Path, name: str) -> None:
    content = (run_copy / name).read_bytes()
    (run_copy / name).write_bytes(b'{"torn: [' if name.endswith("yaml") else content[: len(content) // 2])
    html = page(run_copy)
    Outline(html)
    assert f"{name} could not be read:" in section(html, "warnings")
    assert set(SECTIONS) <= set(Outline(html).ids)


def test_json_of_the_wrong_shape_costs_one_section(run_copy: Path) -> None:
    edit(run_copy / "curate" / "report.json", lambda value: value[0].update(rows_in="many", reasons=[1]))
    edit(run_copy / "arms/mig/seed-0/train/preflight.json", lambda value: value.update(sample=[["x"]]))
    html = page(run_copy)
    assert "This part could not be made from the files of the run" not in section(html, "data")
    assert "MIG beats random" in headline(html)


def test_no_file_is_unpickled(run_copy: Path) -> None:
    import numpy as np

    path = run_copy / "arms" / "mig" / "seed-0" / "select" / "scores.npy"
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    assert "scores.npy could not be read: Object arrays cannot be loaded" in page(run_copy)


def test_warnings_are_counted_once_each(html: str) -> None:
    text = section(html, "warnings")
    assert text.count("3 rows of the pool are also test rows.") == 1
    assert "(2 times)" in text


def test_reading_report_and_dropped_rows_by_reason(html: str) -> None:
    text = section(html, "data")
    assert "462 rows read, 460 kept." in text
    assert "<b>31</b> exact copy" in text
    assert "<b>26</b> near copy" in text
    assert "<b>3</b> also among the test rows" in text
    assert "the assistant&#39;s answer is empty" in text


def test_trained_tokens_are_marked(html: str) -> None:
    assert "<mark>&lt;i&gt;no&lt;/i&gt;, 36&lt;|im_end|&gt;</mark>" in section(html, "preflight")


def test_the_recipe_of_the_report_is_the_recipe_that_ran(html: str, finished: Path) -> None:
    from html import unescape

    from ruamel.yaml import YAML

    shown = re.search(r"<summary>recipe.yaml</summary><pre><code>(.*?)</code>", html, re.DOTALL)[1]  # type: ignore[index]
    yaml = YAML(typ="safe", pure=True)
    lock = yaml.load((finished / "recipe.lock.yaml").read_text())
    assert yaml.load(unescape(shown)) == lock["recipe"]
    for value in ("2.13.0", "0a1b2c", "3d4e5f"):
        assert value in section(html, "reproduce")


def test_examples_include_those_that_got_worse(finished: Path, html: str) -> None:
    text = section(html, "examples")
    shown = re.findall(r'class="chip (\w+)"', text)
    assert shown == ["better"] * 3 + ["worse"] * 2 + ["equal"]
    scores = {
        arm: json.loads((finished / f"arms/{arm}/seed-0/evaluate/scores.json").read_text())["task_score"][
            "scores"
        ]
        for arm in ("mig", "random")
    }
    gain = [m - r for m, r in zip(scores["mig"], scores["random"], strict=True)]
    items = [int(i) for i in re.findall(r"test item (\d+)", text)]
    assert [gain[i] for i in items] == [1, 1, 1, -1, -1, 0]
    assert (
        f"is better than random on {gain.count(1)}, worse on {gain.count(-1)} and equal on {gain.count(0)}"
        in text
    )


def test_cost_adds_up_seeds_and_counts_a_repeated_stage_once(run_copy: Path) -> None:
    events = read_events(run_copy)
    again = [e for e in events if e.get("stage") == "train" and e.get("status") == "finished"][:1]
    write_events(run_copy, [*events, *again])
    text = section(page(run_copy), "cost")
    row = re.search(r"<tr><th>train</th>.*?</tr>", text, re.DOTALL)[0]  # type: ignore[index]
    assert re.findall(r'<td class="n">(.*?)</td>', row) == [
        "",
        "",
        "2 min 24 s",
        "2 min 24 s",
        "2 min 24 s",
        "7 min 12 s",
    ]


def test_share_table_counts_the_picks(finished: Path, html: str) -> None:
    import numpy as np
    from datasets import load_from_disk

    defects = np.array(load_from_disk(str(finished / "curate" / "dataset"))["defect"])
    picks = np.load(finished / "arms/mig/seed-0/select/indices.npy")
    n = int((defects[picks] == "none").sum())
    text = section(html, "choice")
    row = re.search(r"Share of each defect.*?<tr><th>none</th>(.*?)</tr>", text, re.DOTALL)[1]  # type: ignore[index]
    cells = re.findall(r'<td class="n">(.*?)</td>', row)
    assert cells[0] == f"{100 * (defects == 'none').mean():.0f} %"
    assert cells[3] == f"{100 * n / 40:.0f} % ({n})"


def test_the_report_is_the_same_when_written_again(finished: Path, html: str) -> None:
    assert page(finished) == html


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match=r"holds no run: neither events\.jsonl nor recipe\.lock"):
        write_report(tmp_path)
    with pytest.raises(RunDirectoryError, match="There is no run directory"):
        write_report(tmp_path / "absent")
