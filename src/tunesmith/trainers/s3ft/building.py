"""Build the rows: generate, judge, paraphrase, judge, choose (arXiv 2502.08130, Figure 1)."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from tunesmith.core.errors import ParameterError
from tunesmith.core.events import EventLog
from tunesmith.trainers.s3ft.asking import MISSING, Asking, Candidates
from tunesmith.trainers.s3ft.choosing import LEAKS, choose_targets
from tunesmith.trainers.s3ft.generators import Generator
from tunesmith.trainers.s3ft.journal import Journal
from tunesmith.trainers.s3ft.naming import open_judge
from tunesmith.trainers.s3ft.prompts import Prompt, paraphraser
from tunesmith.trainers.s3ft.rows import AUDIT, prompts_and_golds, with_targets
from tunesmith.trainers.s3ft.verdicts import Bench

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["selective_self_targets"]


def selective_self_targets(
    dataset: Dataset,
    generate: Any,
    judge: Any,
    *,
    gold: str = "completion",
    paraphrase: bool | str | Callable[[Prompt, str], Prompt] = True,
    predict: bool = True,
    gold_template: str | None = None,
    n_samples: int = 1,
    temperature: float = 0.0,
    max_new_tokens: int = 512,
    leaks: Sequence[str] = LEAKS,
    source_column: str = "source",
    folder: str | os.PathLike[str] | None = None,
    chunk: int = 256,
    random_state: int = 0,
    log: EventLog | None = None,
) -> Dataset:
    """Return the rows with the targets of S3FT: the model's own right answer, a right paraphrase, or the gold answer.

    Each row stays, once and in its place, with its prompt as it was. A candidate that is empty, was cut short, or is a
    paraphrase with one of ``leaks`` in it, is refused without asking the judge. Train the *same* base model on the
    result with any trainer; the added columns do not matter to it.

    With ``predict=False`` this is self-distillation (SDFT: always paraphrase); with ``paraphrase=False`` own answer or
    gold; and the rows of source ``"model"`` alone are those of rejection sampling (RFT).

    Cost: n generations, and one more for each row whose prediction is not accepted (34 to 70 % in the paper); up to 2 n
    verdicts. Prompts are asked longest first, so that a batch has prompts of like length; equal ones are asked once.
    Memory: all candidates, some kB a row.

    Args:
        dataset: n rows with ``messages``, whose last answer is the gold answer; or with ``prompt`` (text or messages)
            and ``completion`` (text, or one message in a list). Other columns are for the judge, and stay.
        generate: the *base* model, before any tuning: a model's id; a mapping for a local model or an endpoint; a
            language model of `tunesmith.engine`; or any function ``prompts -> replies`` of texts, or of objects with
            ``text`` and ``finish_reason`` (see `generators.Generator`).
        judge: ``(prompt, candidate, gold, row) -> bool``; ``row`` has all columns. With an attribute ``batched = True``
            it takes four lists and returns one. Or a name: ``"number"``, ``"match"``, ``"task"``, ``"tests"``,
            ``"llm"``, a mapping with ``type`` and the judge's arguments, or a list of these, tried in order.
        gold: column of the gold answers where they are not in ``completion``, which is then added.
        paraphrase: True for our question, False for none, a text with ``{prompt}`` and ``{gold}``, or a function
            ``(prompt, gold) -> prompt``.
        predict: let the model answer by itself first.
        gold_template: text with ``{gold}`` that a gold answer is put into where it is the target, so that it has the
            form that the prompt demands; ``None`` leaves it as it is. Judge and paraphrase see the bare answer.
        n_samples: predictions per row; the first that is right is taken, and no more are drawn then. Beyond the paper.
        temperature: of all generations; 0 is greedy. Above 0 where ``n_samples`` is above 1.
        max_new_tokens: longest candidate.
        leaks: phrases that a paraphrase must not have.
        source_column: name of the column that says what a target is.
        folder: where candidates and verdicts are kept, line by line. A build that was killed or failed, given the same
            folder, goes on where it was and ends with the same rows. Generators and judges without a ``fingerprint``
            count by their name: change the folder when what they do changes. ``None`` keeps them for the time of the
            build, and tells where they are if it fails.
        chunk: prompts per call of the generator, and candidates per call of a batched judge.
        random_state: root of the seeds of drawn candidates.
        log: receives ``progress`` and ``warning`` events.

    Returns:
        The rows, ``completion`` or the last answer of ``messages`` replaced, with ``source`` (``"model"``,
        ``"paraphrase"`` or ``"gold"``) and, for audit, ``s3ft_prediction``, ``s3ft_prediction_verdict``,
        ``s3ft_paraphrase``, ``s3ft_paraphrase_verdict`` and ``s3ft_gold``. Verdicts are ``"right"``, ``"wrong"``, or
        why there was none. `self_target_report` counts them.

    Raises:
        DataError: missing columns, an empty prompt or gold answer, one ``id`` twice, a judge that raised or returned no
            bool, or a generator that returned another number of replies; names the row. What was generated and judged
            until then is kept.
        ParameterError: an argument outside its set.
        DiskFullError: there is no room for what is kept.

    References:
        Gupta et al. 2025, arXiv 2502.08130, Figure 1. Greedy decoding, the prompt for paraphrases, the refusals and
        ``gold_template`` are ours: the paper does not say.

    Example:
        >>> from datasets import Dataset
        >>> rows = Dataset.from_dict({"prompt": ["2 + 2?", "3 + 4?"], "completion": ["===4===", "===7==="]})
        >>> def model(prompts):
        ...     return ["It is 4." if p == "2 + 2?" else "It is 7." if "===7===" in p else "It is 8." for p in prompts]
        >>> built = selective_self_targets(rows, model, "number")
        >>> built["completion"][:], built["source"][:]
        (['It is 4.', 'It is 7.'], ['model', 'paraphrase'])
    """
    owner = selective_self_targets
    reword = paraphraser(paraphrase, owner)
    _check(predict, reword, gold_template, n_samples, temperature, max_new_tokens, chunk, leaks)
    log = EventLog() if log is None else log
    generator, bench = Generator(generate, owner), Bench(open_judge(judge, owner))
    pairs = prompts_and_golds(dataset, gold, source_column, owner)
    golds = [answer for _, answer in pairs]
    with Journal(folder) as journal:
        asking = Asking(
            dataset,
            pairs,
            generator,
            bench,
            journal,
            temperature=temperature,
            max_new_tokens=max_new_tokens,
            chunk=chunk,
            random_state=random_state,
            log=log,
        )
        predictions, paraphrases = Candidates.none(len(pairs)), Candidates.none(len(pairs))
        for attempt in range(n_samples if predict else 0):
            rows = predictions.not_right()
            asking.fill(predictions, "prediction", rows, [pairs[i][0] for i in rows], attempt=attempt)
        if reword is not None:
            rows = predictions.not_right()
            asking.fill(paraphrases, "paraphrase", rows, [reword(*pairs[i]) for i in rows], leaks=leaks)
    shown = golds if gold_template is None else [gold_template.replace("{gold}", y) for y in golds]
    targets, sources = choose_targets(
        shown,
        [text or "" for text in predictions.texts],
        predictions.right(),
        [text or "" for text in paraphrases.texts],
        paraphrases.right(),
    )
    _warn(sources, [*predictions.verdicts, *paraphrases.verdicts], log)
    found = (predictions.texts, predictions.verdicts, paraphrases.texts, paraphrases.verdicts, golds)
    return with_targets(
        dataset, targets, {source_column: sources, **dict(zip(AUDIT, found, strict=True))}, gold
    )


def _warn(sources: list[str], verdicts: list[str | None], log: EventLog) -> None:
    kinds = Counter(verdict.split(":")[0] for verdict in verdicts if verdict is not None)
    told = []
    if sources and set(sources) == {"gold"}:
        counts = ", ".join(f"{count:,} × {reason}" for reason, count in kinds.most_common())
        told.append(
            f"No candidate of any of the {len(sources):,} rows was accepted ({counts}): the targets are the gold "
            "answers, and training on them is plain SFT. Does the judge accept the gold answers themselves?"
        )
    if kinds[MISSING]:
        told.append(
            f"{kinds[MISSING]:,} candidates are missing, since the generator gave no reply, and count as not accepted. "
            "Build again with the same folder to ask for these alone."
        )
    for text in told:
        log.warn(text)
        warnings.warn(text, stacklevel=3)


def _check(
    predict: bool,
    reword: Any,
    template: Any,
    n_samples: Any,
    temperature: Any,
    max_new_tokens: Any,
    chunk: Any,
    leaks: Any,
) -> None:
    owner = selective_self_targets
    for name, value in (("n_samples", n_samples), ("max_new_tokens", max_new_tokens), ("chunk", chunk)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ParameterError(name, owner, "an int >= 1", value)
    if (
        isinstance(temperature, bool)
        or not isinstance(temperature, (int, float))
        or not 0 <= temperature < 1e6
    ):
        raise ParameterError("temperature", owner, "a finite number >= 0", temperature)
    if n_samples > 1 and temperature == 0:
        raise ParameterError(
            "n_samples", owner, "1 where temperature is 0: all samples would be equal", n_samples
        )
    if not predict and reword is None:
        raise ParameterError(
            "predict", owner, "True where paraphrase is False: nothing would be generated", predict
        )
    if template is not None and (not isinstance(template, str) or "{gold}" not in template):
        raise ParameterError("gold_template", owner, "a text with {gold} in it, or None", template)
    if isinstance(leaks, str) or not all(isinstance(leak, str) and leak for leak in leaks):
        raise ParameterError("leaks", owner, "a list of texts that are not empty", leaks)
