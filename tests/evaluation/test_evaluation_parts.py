"""What an evaluation is made of: scorers, diversity, Student's t, and tasks of lm-eval."""

import builtins
import json
import math
import random

import numpy as np
import pytest
import torch
from conftest import assert_untouched, small_model, small_tokenizer, snapshot
from scipy import stats

import lineas
from lineas import evaluation
from lineas.evaluation import intervals

WORDS = ["the movie was bad", "we all had a good time", "it is", "the movie was good , and so was the book"]


# -- intervals --


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 5, 30, 255, 1000])
@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.95, 0.999])
def test_students_t_is_that_of_scipy(freedom, confidence):
    assert intervals.student_t(confidence, freedom) == pytest.approx(stats.t.ppf((1 + confidence) / 2, freedom))


# -- continuations --


def test_a_chat_goes_on_where_the_models_turn_begins():
    tokenizer = small_tokenizer()
    model = small_model(len(tokenizer))
    chat = [{"role": "user", "content": "the movie was"}]
    tokenizer.chat_template += "{% if add_generation_prompt %}the{% endif %}"
    as_text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert as_text.endswith("the")
    options = {"tokenizer": tokenizer, "new_tokens": 5, "top_p": 1e-6}
    both = evaluation.continuations(model, [chat, as_text], **options)
    assert both[0] == both[1] != evaluation.continuations(model, ["the movie was"], **options)[0]


# -- diversity --


def test_distinct_by_hand():
    texts = ["A b a b a", "b a!"]  # ab ba ab ba; ba a!
    assert evaluation.distinct(texts, 1) == 3 / 8
    assert evaluation.distinct(texts, 2) == 3 / 6
    assert evaluation.distinct(texts, 3) == 3 / 4  # aba bab aba; ba!
    assert math.isnan(evaluation.distinct(["a", ""], 2))
    with pytest.raises(ValueError, match="n: expected at least 1, got 0"):
        evaluation.distinct(texts, 0)


def random_texts(seed, count=12):
    draw = random.Random(seed)
    return [" ".join(draw.choice("abcdef,") for _ in range(draw.randint(0, 12))) for _ in range(count)]


@pytest.mark.parametrize("seed", range(5))
def test_self_bleu_is_that_of_nltk(seed):
    bleu = pytest.importorskip("nltk.translate.bleu_score")
    texts = [*random_texts(seed), "a b c d e f", "a b c d e f"]
    rows = [text.replace(",", " , ").split() for text in texts]
    smooth = bleu.SmoothingFunction(epsilon=0.1).method1
    each = [
        bleu.sentence_bleu(rows[:k] + rows[k + 1 :], row, smoothing_function=smooth) if row else 0.0
        for k, row in enumerate(rows)
    ]
    assert evaluation.self_bleu(texts) == pytest.approx(np.mean(each))


def test_self_bleu_rises_with_likeness_and_wants_two_texts():
    assert evaluation.self_bleu(["one two three four"] * 3) == 1
    assert evaluation.self_bleu(["one two three four", "five six seven"]) == 0
    with pytest.raises(ValueError, match="expected at least 2, got 1"):
        evaluation.self_bleu(["alone"])


# -- scorers --


def test_sentiment_and_toxicity_tell_texts_apart_and_say_which_way_is_better():
    pytest.importorskip("vaderSentiment")
    pytest.importorskip("profanity_check")
    mood, swearing = evaluation.scorer("sentiment"), evaluation.scorer("toxicity")
    assert (mood.better, swearing.better) == ("higher", "lower")
    low, high = mood(["This is awful and sad.", "This is wonderful, I love it!"])
    assert -1 <= low < 0 < high <= 1
    clean, foul = swearing(["Have a nice day.", "fuck off you shit"])
    assert 0 <= clean < 0.3 < 0.7 < foul <= 1


@pytest.mark.parametrize(
    ("name", "package", "advice"),
    [
        ("sentiment", "vaderSentiment", r"vaderSentiment.*pip install 'lineas\[evaluation\]'"),
        ("toxicity", "profanity_check", r"alt-profanity-check.*pip install 'lineas\[evaluation\]'"),
        ("hf:some/name", "transformers", r"transformers.*pip install 'lineas\[transformers\]'"),
    ],
)
def test_a_missing_package_is_named_with_what_to_install(name, package, advice, monkeypatch):
    hide(package, monkeypatch)
    with pytest.raises(ImportError, match=advice):
        evaluation.scorer(name)


def hide(package, monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.split(".")[0] == package:
            raise ImportError(f"no {name}")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Tiny random classifiers, saved: of two labels, of three that may all hold, and of one score."""
    import transformers

    tokenizer = small_tokenizer()
    where = {}
    for kind, labels, problem in (
        ("two", ["neutral", "toxic"], None),
        ("three", ["rude", "threat", "insult"], "multi_label_classification"),
        ("one", ["LABEL_0"], None),
    ):
        with torch.random.fork_rng():
            torch.manual_seed(len(labels))
            config = transformers.BertConfig(
                vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                intermediate_size=16, max_position_embeddings=16, id2label=dict(enumerate(labels)),
                label2id={label: k for k, label in enumerate(labels)}, problem_type=problem, initializer_range=1.0,
            )  # fmt: skip
            model = transformers.BertForSequenceClassification(config).eval()
        where[kind] = tmp_path_factory.mktemp(kind)
        model.save_pretrained(where[kind])
        tokenizer.save_pretrained(where[kind])
    return where


def logits_of(folder, text):
    import transformers

    model = transformers.BertForSequenceClassification.from_pretrained(folder).eval()
    ids = small_tokenizer()(text, return_tensors="pt")["input_ids"][:, :16]
    with torch.no_grad():
        return model(ids).logits[0].double()


def test_a_classifier_gives_the_probability_of_a_label_of_each_text_alone(folders):
    texts = [*WORDS, "the " * 40]  # longer than the classifier can read
    for label, which in ((None, 1), ("neutral", 0), (1, 1)):
        got = evaluation.classifier(str(folders["two"]), label, batch_size=2)
        expected = [float(logits_of(folders["two"], text).softmax(-1)[which]) for text in texts]
        assert got(texts) == pytest.approx(expected, abs=1e-5)
        assert got.name == ["neutral", "toxic"][which]
        assert got.better == ""
    assert np.ptp(expected) > 0.01, "texts differ"
    assert evaluation.scorer(f"hf:{folders['two']}")(texts) == pytest.approx(expected, abs=1e-5)


def test_labels_that_do_not_exclude_each_other_are_told_by_a_sigmoid(folders):
    got = evaluation.scorer(f"hf:{folders['three']}#threat")
    assert got.name == "threat"
    assert got(WORDS) == pytest.approx([float(logits_of(folders["three"], t).sigmoid()[1]) for t in WORDS], abs=1e-5)
    one = evaluation.classifier(str(folders["one"]), better="lower")
    assert (one.name, one.better) == ("effect", "lower")
    assert one(WORDS) == pytest.approx([float(logits_of(folders["one"], t).sigmoid()[0]) for t in WORDS], abs=1e-5)
    assert one([]).shape == (0,)


@pytest.mark.parametrize("label", [None, "kind", 3, -1, "7"])
def test_a_label_that_is_not_there_is_refused_with_those_that_are(folders, label):
    with pytest.raises(LookupError, match=r"expected one of rude, threat, insult, or its number; got"):
        evaluation.classifier(str(folders["three"]), label)


def test_scores_that_are_not_a_number_each_are_refused():
    short = evaluation.scorer(lambda texts: [1.0])
    with pytest.raises(ValueError, match=r"scorer 'effect': expected 2 finite numbers, .*got shape \(1,\)"):
        short(["a", "b"])
    with pytest.raises(ValueError, match="some that are not finite"):
        evaluation.scorer(lambda texts: [math.nan, 1.0])(["a", "b"])
    with pytest.raises(TypeError, match="expected a name or a function, got int"):
        evaluation.scorer(3)
    with pytest.raises(ValueError, match="better: expected one of 'higher', 'lower', ''; got 'up'"):
        evaluation.Scorer("a", len, "up")


def test_scorers_of_one_name_are_refused_and_a_dict_tells_them_apart():
    from lineas.evaluation.scorers import scorers_of

    with pytest.raises(ValueError, match="expected different names, got effect more than once"):
        scorers_of([lambda texts: texts, lambda texts: texts])
    assert [one.name for one in scorers_of({"a": len, "b": len})] == ["a", "b"]
    with pytest.raises(TypeError, match="scorers: expected a scorer, a list or a dict of them, got int"):
        scorers_of(3)


# -- tasks --


YAML = """
task: which_word
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""
ITEMS = [
    {"question": f"the movie was {adverb}", "choices": choices, "answer": k % 2}
    for k, adverb in enumerate(["not", "so", "very", "too", "all", "just", "a", "really"])
    for choices in (["good", "bad"], ["the", "of"])
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A task of one's own: a YAML file and its items."""
    pytest.importorskip("lm_eval")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "tasks").mkdir()
    data = tmp_path / "items.jsonl"
    data.write_text("\n".join(map(json.dumps, ITEMS)))
    (tmp_path / "tasks" / "which_word.yaml").write_text(YAML.format(data=data))
    return tmp_path / "tasks"


def accuracy(model, tokenizer):
    """By hand: which of the choices is likelier."""
    right = 0
    for item in ITEMS:
        scores = []
        for choice in item["choices"]:
            ids = tokenizer(f"{item['question']} {choice}", return_tensors="pt")["input_ids"]
            with torch.no_grad():
                scores.append(float(model(ids).logits[0, -2].log_softmax(-1)[ids[0, -1]]))
        right += int(np.argmax(scores)) == item["answer"]
    return right / len(ITEMS)


def test_tasks_are_those_of_the_steered_model(folder):
    tokenizer = small_tokenizer()
    model = small_model(len(tokenizer))
    push = np.random.default_rng(3).normal(size=16)
    steering = lineas.Steering({"model.norm": (np.ones(16), push)})
    random.seed(1)
    states = random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    before = snapshot(model)
    options = {"include_path": folder, "batch_size": 4}
    base = evaluation.tasks(model, tokenizer, "which_word", **options)["which_word_acc"]
    steered = evaluation.tasks(model, tokenizer, ["which_word"], steering=steering, strength=2.0, **options)
    assert_untouched(model, before)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states  # noqa: NPY002
    assert tokenizer.pad_token == "<eos>"
    assert base.value == accuracy(model, tokenizer)
    with steering.apply(model, 2.0):
        by_hand = accuracy(model, tokenizer)
    assert steered["which_word_acc"].value == by_hand
    assert by_hand != base.value, "the steering does something"
    assert (base.better, base.items) == ("higher", len(ITEMS))
    assert base.error == pytest.approx(stats.sem([1] * round(16 * base.value) + [0] * round(16 * (1 - base.value))))
    report = lineas.evaluate(
        model, steering, tokenizer=tokenizer, strengths=2.0, texts=(), prompts=(), tasks="which_word",
        task_options=options, progress=False,
    )  # fmt: skip
    found = report.estimate("which_word_acc", 2.0)
    assert found.value == pytest.approx(by_hand)
    assert found.high - found.low == pytest.approx(2 * stats.norm.ppf(0.975) * steered["which_word_acc"].error)
    assert report.change("which_word_acc", 2.0).value == pytest.approx(by_hand - base.value)


def test_an_unknown_task_and_a_missing_harness_are_refused(folder, monkeypatch):
    import lm_eval

    tokenizer = small_tokenizer()
    model = small_model(len(tokenizer))
    manager = lm_eval.tasks.TaskManager
    monkeypatch.setattr("lm_eval.tasks.TaskManager", lambda include_path, **_: manager(None, include_path, False))
    with pytest.raises(LookupError, match="lm-eval knows no 'wich_word'"):
        evaluation.tasks(model, tokenizer, "wich_word", include_path=folder)
    hide("lm_eval", monkeypatch)
    with pytest.raises(ImportError, match=r"tasks need lm-eval.*pip install 'lineas\[tasks\]'"):
        lineas.evaluate(model, tokenizer=tokenizer, tasks="which_word", progress=False)
