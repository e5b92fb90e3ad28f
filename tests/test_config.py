"""The config: JSON round trips, differences, and errors for damaged files."""

import json

import pytest

from cnn_jax.config import GROUPS, TRANSIENT, Config
from cnn_jax.errors import UserError


def test_json_round_trip_keeps_every_value(tmp_path):
    config = Config("mine").override(
        epochs=2.5, steps=None, augment=("flip", "pad_crop:padding=4"), learning_rate=3e-4, clip_norm=1.0, fresh=True
    )
    (tmp_path / "config.json").write_text(config.to_json())
    assert Config.load(tmp_path / "config.json") == config


def test_field_names_are_unique_over_the_groups_because_flags_have_no_prefix():
    names = [name for group in GROUPS.values() for name in group.__dataclass_fields__]
    assert len(names) == len(set(names))
    assert set(names) >= TRANSIENT


def test_difference_lists_what_changes_the_result_and_nothing_else():
    one = Config().override(learning_rate=0.1, workdir="a", workers=3)
    other = Config().override(learning_rate=0.2, workdir="b", workers=0)
    assert one.difference(other) == ["learning_rate: 0.1 here, 0.2 there"]


def test_weights_to_start_from_may_be_named_by_another_path(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    saved = Config().override(init_from=str(tmp_path / "first"))
    assert Config().override(init_from="first").difference(saved) == []
    assert Config().override(init_from="second").difference(saved) != []


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ("{", "not valid JSON"),
        ("[]", "is not a JSON object"),
        (json.dumps({"optim": {"optimzer": "adam"}}), "perhaps you meant optimizer"),
        (json.dumps({"data": {"batch_size": "many"}}), 'data.batch_size is "many"; it must be a whole number'),
        (json.dumps({"data": {"batch_size": 1.5}}), "data.batch_size is 1.5; it must be a whole number"),
        (json.dumps({"data": {"batch_size": True}}), "data.batch_size is true; it must be a whole number"),
        (json.dumps({"data": {"image_size": "8"}}), 'data.image_size is "8"; it must be a whole number or null'),
        (json.dumps({"data": {"augment": "flip"}}), 'data.augment is "flip"; it must be a list of strings'),
        (json.dumps({"data": {"augment": ["flip", 3]}}), 'data.augment is ["flip", 3]; it must be a list of strings'),
        (json.dumps({"data": {"skip_bad_images": None}}), "data.skip_bad_images is null; it must be true or false"),
        (json.dumps({"model": {"model": 5}}), "model.model is 5; it must be a string"),
        (json.dumps({"optim": {"weight_decay": None}}), "optim.weight_decay is null; it must be a number"),
        (json.dumps({"optim": {"clip_norm": [1]}}), "optim.clip_norm is [1]; it must be a number or null"),
        (json.dumps({"train": {"select": "worst"}}), 'train.select is "worst"; it must be one of best, last'),
        (json.dumps({"train": {"require": 3}}), "train.require is 3; it must be one of cpu, gpu, tpu or null"),
        (json.dumps({"experiment": 3}), "experiment is 3; it must be a string"),
        (json.dumps({"other": {}}), "unknown groups ['other']"),
    ],
)
def test_a_damaged_config_is_named_in_one_line(tmp_path, record, said):
    path = tmp_path / "config.json"
    path.write_text(record)
    with pytest.raises(UserError) as error:
        Config.load(path)
    assert said in str(error.value) and str(path) in str(error.value) and "\n" not in str(error.value)


def test_the_type_of_every_field_is_described_in_plain_words(tmp_path):
    for group, kind in GROUPS.items():
        for name in kind.__dataclass_fields__:
            (tmp_path / "config.json").write_text(json.dumps({group: {name: {}}}))
            with pytest.raises(UserError) as error:
                Config.load(tmp_path / "config.json")
            expected = str(error.value).partition("; it must be ")[2]
            assert expected.startswith(("a ", "one of ", "true or ")), (name, expected)


def test_override_refuses_a_field_that_does_not_exist():
    with pytest.raises(UserError, match="leraning_rate"):
        Config().override(leraning_rate=1.0)


TUNED = Config().override(
    dataset="digits",
    image_size=28,
    train_split="train[:50%]",
    model="mlp",
    model_args=("hidden=16",),
    optimizer="adamw",
    optimizer_args=("b1=0.8",),
    learning_rate=3e-3,
    head_learning_rate=1e-2,
    weight_decay=0.05,
    schedule="step",
    schedule_args=("factor=0.1",),
    warmup_epochs=2.0,
    steps=9,
)


@pytest.mark.parametrize(
    ("changes", "reset"),
    [
        ({"optimizer": "momentum"}, {"optimizer_args", "learning_rate", "head_learning_rate", "weight_decay"}),
        ({"optimizer": "momentum", "weight_decay": 1e-4}, {"optimizer_args", "learning_rate", "head_learning_rate"}),
        ({"optimizer": "adamw", "seed": 1}, set()),
        (
            {"optimizer": "my.module:optimizer"},
            {"optimizer_args", "learning_rate", "head_learning_rate", "weight_decay"}
            | {"schedule", "schedule_args", "warmup_epochs"},
        ),
        ({"schedule": "cosine"}, {"schedule_args"}),
        ({"model": "lenet5"}, {"model_args"}),
        ({"model": "lenet5", "model_args": ("pool=max",)}, set()),
        ({"dataset": "mnist"}, {"train_split"}),
        ({"dataset": "synthetic:32x32x3:10"}, {"train_split", "image_size"}),
        ({"epochs": 10}, {"steps"}),
    ],
)
def test_what_was_tuned_for_another_value_does_not_carry_over(changes, reset):
    before, after, defaults = TUNED.flat(), TUNED.override(**changes).flat(), Config().flat()
    for name, value in after.items():
        assert value == (changes[name] if name in changes else defaults[name] if name in reset else before[name]), name
    assert all(before[name] != defaults[name] for name in reset), "else this shows nothing"
