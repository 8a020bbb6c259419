"""Perplexity of captions under tiny random image-text models: by hand, padding and order, failures, the filter."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tunesmith.core.errors import DataError, ParameterError
from tunesmith.engine.image_text import image_text_nll, open_image
from tunesmith.select.image_text import ImageTextScorer
from tunesmith.select.perplexity import PerplexitySelector

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<image>{% else %}{{ c['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PROMPT = "<|im_start|>user\n<image>describe<|im_end|>\n<|im_start|>assistant\n"
CAPTIONS = [
    "the cat sat on the mat",
    "Paris",
    "a function that adds two numbers and returns the sum",
    "0 1 2 3",
]


def picture(seed: int, size: tuple[int, int] = (40, 28)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def llava(tiny_tokenizer: Any) -> tuple[Any, Any]:
    """A random LLaVA: images of 28 pixels in 4 patches, a vision tower and a Llama of one layer each."""
    import torch
    from transformers import (
        CLIPImageProcessorPil,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    processor = LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}),
        tokenizer,
        patch_size=14,
        num_additional_image_tokens=1,
        vision_feature_select_strategy="default",
        chat_template=TEMPLATE,
    )
    small = {"intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(hidden_size=16, image_size=28, patch_size=14, **small),
        text_config=LlamaConfig(vocab_size=len(tokenizer), hidden_size=32, **small),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_select_strategy="default",
        vision_feature_layer=-1,
    )
    model = LlavaForConditionalGeneration(config).eval()
    # Larger weights than the default's, so that the image and the words before matter.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(8)
    return model, processor


def by_hand(model: Any, processor: Any, image: Any, caption: str) -> tuple[float, int]:
    """One row, one pass, the answer's ids written out."""
    import torch

    prompt = processor(text=PROMPT, images=image, return_tensors="pt")
    answer = processor.tokenizer(caption + "<|im_end|>", add_special_tokens=False)["input_ids"]
    ids = torch.cat([prompt["input_ids"], torch.tensor([answer])], dim=1)
    with torch.inference_mode():
        logits = model(input_ids=ids, pixel_values=prompt["pixel_values"]).logits[0]
    log_p = logits.double().log_softmax(-1)
    start = prompt["input_ids"].shape[1]
    return -sum(float(log_p[start - 1 + k, token]) for k, token in enumerate(answer)), len(answer)


def test_only_the_answer_and_its_end_of_turn_are_scored(llava: tuple[Any, Any]) -> None:
    images = [picture(k) for k in range(4)]
    nll, tokens = image_text_nll(*llava, images, CAPTIONS, "describe")
    for k, caption in enumerate(CAPTIONS):
        wanted, count = by_hand(*llava, images[k], caption)
        assert tokens[k] == count
        assert nll[k] == pytest.approx(wanted, rel=1e-5)


def test_batches_order_and_padding_side_change_nothing(llava: tuple[Any, Any]) -> None:
    model, processor = llava
    rows = [{"image": picture(k), "text": caption} for k, caption in enumerate(CAPTIONS)]
    wanted = ImageTextScorer(model, processor, batch_size=4)(rows)
    left = copy.deepcopy(processor)
    left.tokenizer.padding_side = "left"
    for scorer in (
        ImageTextScorer(model, processor, batch_size=1),
        ImageTextScorer(model, left, batch_size=3),
    ):
        np.testing.assert_allclose(scorer(rows), wanted, rtol=1e-5)
    np.testing.assert_allclose(ImageTextScorer(model, left)(rows[::-1])[::-1], wanted, rtol=1e-5)


def test_image_and_instruction_condition_the_answer(llava: tuple[Any, Any]) -> None:
    row = {"image": picture(0), "text": CAPTIONS[0]}
    base, other, alone = (
        ImageTextScorer(*llava)([{**row, "image": image}])[0] for image in (row["image"], picture(1), None)
    )
    asked = ImageTextScorer(*llava, instruction="what is the capital ?")([row])[0]
    assert len({round(float(v), 3) for v in (base, other, alone, asked)}) == 4


def test_a_uniform_model_has_the_vocabulary_as_perplexity(llava: tuple[Any, Any]) -> None:
    model, processor = copy.deepcopy(llava[0]), llava[1]
    model.get_output_embeddings().weight.data.zero_()
    rows = [{"image": picture(k), "text": caption} for k, caption in enumerate(CAPTIONS)]
    np.testing.assert_allclose(
        ImageTextScorer(model, processor)(rows), model.config.text_config.vocab_size, rtol=1e-6
    )


def test_the_filter_keeps_the_lowest_and_never_what_failed(llava: tuple[Any, Any], tmp_path: Any) -> None:
    picture(7).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"not an image")
    rows = [{"image": picture(k), "text": caption} for k, caption in enumerate(CAPTIONS)]
    rows += [
        {"image": str(tmp_path / "bad.png"), "text": "x"},
        {"image": str(tmp_path / "good.png"), "text": "good"},
        {"image": picture(0), "text": "  "},
        {"image": None, "text": "text alone"},
        {"image": str(tmp_path / "gone.png"), "text": "x"},
    ]
    scorer = ImageTextScorer(*llava, batch_size=2)
    with pytest.warns(UserWarning, match="3 of 9 items have no perplexity and are never chosen"):
        selector = PerplexitySelector(scorer=scorer).fit(rows)
    assert sorted(scorer.failures_) == [4, 6, 8]
    assert scorer.failures_[6] == "the text is empty."
    assert "an image cannot be read" in scorer.failures_[4]
    kept = selector.keep(0.5)
    ppl = np.exp(scorer.nll_ / np.maximum(scorer.tokens_, 1))
    valid = [0, 1, 2, 3, 5, 7]
    assert kept.tolist() == sorted(valid, key=lambda k: ppl[k])[:3]
    assert scorer.tokens_[[4, 6, 8]].tolist() == [0, 0, 0]


def test_an_interrupted_call_goes_on_and_a_finished_one_starts_anew(llava: tuple[Any, Any]) -> None:
    model, processor = copy.deepcopy(llava[0]), llava[1]
    rows = [{"image": picture(k), "text": caption} for k, caption in enumerate(CAPTIONS)]
    wanted = ImageTextScorer(model, processor, batch_size=1)(rows)

    class Broken(list[Any]):
        reads = 0
        broken = True

        def __getitem__(self, k: Any) -> Any:
            if k == 2 and self.broken:
                raise OSError("the disk is gone")
            self.reads += 1
            return super().__getitem__(k)

    broken, scorer = Broken(rows), ImageTextScorer(model, processor, batch_size=1)
    with pytest.raises(OSError, match="the disk is gone"):
        scorer(broken)
    broken.broken = False
    np.testing.assert_allclose(scorer(broken), wanted, rtol=1e-6)
    assert broken.reads == 4
    model.get_output_embeddings().weight.data.zero_()
    np.testing.assert_allclose(scorer(broken), model.config.text_config.vocab_size, rtol=1e-6)


def test_without_a_chat_template_the_image_comes_first(llava: tuple[Any, Any]) -> None:
    processor = copy.deepcopy(llava[1])
    processor.chat_template = None
    nll, tokens = image_text_nll(llava[0], processor, [picture(0)], ["Paris\n"], "describe")
    assert tokens[0] == len(processor.tokenizer("Paris")["input_ids"])
    assert nll[0] > 0


def test_messages(llava: tuple[Any, Any]) -> None:
    model, processor = llava
    with pytest.raises(ParameterError, match="'batch_size' parameter of ImageTextScorer must be an int >= 1"):
        ImageTextScorer(model, processor, batch_size=0)
    other = copy.deepcopy(model)
    other.config.is_encoder_decoder = True
    with pytest.raises(ParameterError, match="'model' parameter of ImageTextScorer must be decoder-only"):
        ImageTextScorer(other, processor)
    with pytest.raises(ParameterError, match="'model' parameter of image_text_nll must be decoder-only"):
        image_text_nll(other, processor, [picture(0)], ["x"], "y")
    with pytest.raises(
        DataError, match="row 0: ImageTextScorer needs the keys 'image' and 'text' in each row"
    ):
        ImageTextScorer(model, processor)([{"picture": 1}])
    with pytest.raises(DataError, match="an image cannot be read"):
        open_image(3)
    with pytest.raises(DataError, match="images in all of its rows or in none"):
        image_text_nll(model, processor, [picture(0), None], ["x", "y"], "z")
    backwards = copy.deepcopy(processor)
    backwards.chat_template = "{{ messages | length }}" + TEMPLATE
    with pytest.raises(DataError, match="does not begin with its own prompt"):
        image_text_nll(model, backwards, [picture(0)], ["x"], "y")
