"""Loading weights from every kind of source, or a one-line error. No test needs a network."""

import hashlib
import io
import json
import sys
import urllib.error
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from made_up_run import CONFIG as CONFIG_OF_RUN
from made_up_run import digits, expected_logits, make_run
from PIL import Image

import cnn_jax
from cnn_jax.commands.parser import guard
from cnn_jax.commands.weights import main
from cnn_jax.data import Preprocess
from cnn_jax.errors import UserError
from cnn_jax.models.resnet import ResNet
from cnn_jax.models.vgg import VGG
from cnn_jax.runs.inference import predict_outputs
from cnn_jax.storage.weights_file import load_weights, save_weights
from cnn_jax.weights import export, load_pretrained
from cnn_jax.weights.catalog import ARCHITECTURES, TORCHVISION, TorchvisionFile
from cnn_jax.weights.convert import flattened_maps, to_torch
from cnn_jax.weights.files import read_state
from cnn_jax.weights.names import densenet
from cnn_jax.weights.naming import namings
from cnn_jax.weights.preprocess import IMAGENET_MEAN, IMAGENET_STD, PublishedPreprocess, from_timm
from cnn_jax.weights.pretrained import choose_head, open_pretrained
from cnn_jax.weights.wrappers import prefixes

TINY: Any = partial(ResNet, num_classes=5, blocks=(1, 1), width=4, shortcut="B", input_shape=(16, 16, 3))
PRETRAINED_CFG = {
    "input_size": [3, 16, 16],
    "interpolation": "bicubic",
    "crop_pct": 0.8,
    "crop_mode": "center",
    "mean": [0.1, 0.2, 0.3],
    "std": [0.4, 0.5, 0.6],
}
GREY = {"image_shape": [8, 8, 1], "mean": [0.5], "std": [0.5]}
CONFIG = {"architecture": "tiny", "num_classes": 5, "pretrained_cfg": PRETRAINED_CFG}


def drawn(model: Any, image: tuple[int, ...]) -> Any:
    like = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, *image)), train=False))
    numbers = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: numbers.uniform(0.5, 1, leaf.shape).astype(np.float32), like)


VARIABLES = drawn(TINY(), (16, 16, 3))
STATE = to_torch(VARIABLES, namings(TINY())["torchvision"].names)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CNN_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(ARCHITECTURES, "tiny", TINY)
    monkeypatch.chdir(tmp_path)


def saved(path: Path, state: Any = STATE, config: Any = CONFIG) -> Path:
    """Writes weights with the Hub's config.json beside them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_weights(path, state, {})
    path.with_name("config.json").write_text(json.dumps(config))
    return path


def message(source: Any, **kwargs: Any) -> str:
    with pytest.raises(UserError) as error:
        load_pretrained(source, **kwargs)
    assert "\n" not in str(error.value)
    return str(error.value)


def assert_same(a: Any, b: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_a_folder_with_the_files_of_the_hub(tmp_path):
    saved(tmp_path / "w" / "model.safetensors")
    model, variables, preprocess = load_pretrained(tmp_path / "w")
    assert model == TINY(num_classes=5)
    assert_same(variables, VARIABLES)
    expected = PublishedPreprocess((16, 16, 3), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), resize=20, interpolation="bicubic")
    assert preprocess is not None and preprocess == expected
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)
    assert predict_outputs(model, variables, preprocess, images).shape == (2, 5)


def test_files_brought_by_hand_are_taken_before_any_network(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    saved(tmp_path / "cache" / "weights" / "timm" / "tiny.in1k" / "model.safetensors")
    assert_same(load_pretrained("timm/tiny.in1k")[1], VARIABLES)


class FakeHub(SimpleNamespace):
    """Fakes the four functions of `huggingface_hub` we use, serving a folder; None means no network."""

    def __init__(self, folder: Path | None):
        super().__init__(calls=[], folder=folder)

    def try_to_load_from_cache(self, repo_id: str, filename: str, revision: str | None) -> str | object | None:
        return object() if filename == "known to be absent" else None

    def hf_hub_url(self, repo_id: str, filename: str, revision: str | None) -> str:
        return f"https://hub/{repo_id}/{filename}@{revision}"

    def get_hf_file_metadata(self, url: str, timeout: float) -> None:
        self.calls.append(url)
        assert 0 < timeout <= 30
        if self.folder is None:
            raise OSError("no route to the hub.\nRequest ID: 123")

    def hf_hub_download(self, repo_id: str, filename: str, revision: str | None) -> str:
        assert self.folder is not None
        return str(self.folder / filename)


@pytest.mark.parametrize("revision", [None, "v2"])
def test_a_model_of_the_hub(tmp_path, monkeypatch, revision):
    hub = FakeHub(saved(tmp_path / "hub" / "model.safetensors").parent)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    source = "timm/tiny.in1k" + (f"@{revision}" if revision else "")
    assert_same(load_pretrained(source)[1], VARIABLES)
    assert hub.calls == [f"https://hub/timm/tiny.in1k/{f}@{revision}" for f in ("config.json", "model.safetensors")]


def test_no_library_and_no_network(tmp_path, monkeypatch):
    url = "https://huggingface.co/timm/tiny.in1k/resolve/main/config.json"
    target = tmp_path / "cache" / "weights" / "timm" / "tiny.in1k" / "config.json"
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    said = message("timm/tiny.in1k")
    assert "pip install 'cnn_jax[hub]'" in said and url in said and str(target) in said
    hub = FakeHub(None)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    said = message("timm/tiny.in1k")
    assert "(no route to the hub)" in said and url in said and str(target) in said and "a local file" in said
    assert len(hub.calls) == 1, "asked again without a network"


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (CONFIG | {"architecture": "vit_tiny"}, "unknown architecture 'vit_tiny'"),
        (CONFIG | {"model_args": {"act_layer": "gelu"}}, "with model_args"),
        (CONFIG | {"model_args": {"drop_rate": 0.1, "output_stride": 16}}, "with model_args {'output_stride': 16}"),
        (CONFIG | {"pretrained_cfg": {**PRETRAINED_CFG, "crop_mode": "squash"}}, "crop_mode squash"),
        (CONFIG | {"pretrained_cfg": {**PRETRAINED_CFG, "interpolation": "lanczos"}}, "bilinear, bicubic"),
        (CONFIG | {"pretrained_cfg": {"mean": [0.5]}}, "w cannot be used ('input_size')"),
        ({"model_type": "bert"}, "is not the config.json of a timm model"),
        ([], "is not the config.json of a timm model"),
    ],
)
def test_unsupported_hub_models_are_refused(tmp_path, config, expected):
    saved(tmp_path / "w" / "model.safetensors", config=config)
    assert expected in message(tmp_path / "w")


def publish(monkeypatch, content: bytes, digest: str | None = None) -> TorchvisionFile:
    """Fakes a file published by torchvision."""
    digest = digest or hashlib.sha256(content).hexdigest()[:8]
    entry = TorchvisionFile("tiny", f"tiny-{digest}.safetensors", 1.0, 5.0, from_timm(PRETRAINED_CFG))
    monkeypatch.setitem(TORCHVISION, "tiny", entry)

    def urlopen(request: Any, timeout: float) -> Any:
        assert request.full_url == f"https://download.pytorch.org/models/{entry.file}" and timeout > 0
        answer = io.BytesIO(content)
        answer.headers = {"Content-Length": str(len(content))}  # type: ignore[attr-defined]
        return answer

    monkeypatch.setattr("urllib.request.urlopen", urlopen)
    return entry


def test_a_file_of_torchvisions(tmp_path, monkeypatch, capsys):
    entry = publish(monkeypatch, saved(tmp_path / "w.safetensors").read_bytes())
    model, variables, preprocess = load_pretrained("torchvision/tiny")
    assert_same(variables, VARIABLES)
    assert (model, preprocess) == (TINY(), entry.preprocess)
    assert "downloading https://download.pytorch.org/models/tiny-" in capsys.readouterr().err
    monkeypatch.delattr("urllib.request.urlopen")
    assert_same(load_pretrained("torchvision/tiny")[1], VARIABLES)  # from the cache
    # The name of a local file identifies its model, too.
    path = saved(tmp_path / "elsewhere" / entry.file)
    assert_same(load_pretrained(path)[1], VARIABLES)


def test_downloads_that_fail_leave_nothing(tmp_path, monkeypatch):
    entry = publish(monkeypatch, b"something else", digest="0123abcd")
    target = tmp_path / "cache" / "weights" / "torchvision" / entry.file
    said = message("torchvision/tiny")
    assert "SHA-256 begins with" in said and entry.url in said and str(target) in said
    assert list(target.parent.iterdir()) == []

    def offline(*_: Any, **__: Any) -> None:
        raise urllib.error.URLError(OSError(-2, "Name or service not known"))

    monkeypatch.setattr("urllib.request.urlopen", offline)
    assert "(Name or service not known)" in message("torchvision/tiny").replace("[Errno -2] ", "")
    assert "perhaps you meant resnet50" in message("torchvision/resnet5")


def test_a_run_that_is_not_trained_yet_is_no_name_on_the_hub():
    untrained = "no run runs/mnist_lenet5: train it first with python -m experiments.mnist_lenet5"
    assert message("runs/mnist_lenet5") == untrained
    assert message("runs/mine").startswith("no file or folder runs/mine: name a run folder, ")


@pytest.mark.parametrize("source", ["absent.pth", "folder/absent.safetensors", "here/absent", "absent", "a b/c"])
def test_absent_sources(tmp_path, source):
    (tmp_path / "here").mkdir()
    assert message(source).startswith(f"no file or folder {source}: ")


def test_classifier_is_kept_replaced_or_refused(tmp_path):
    path = saved(tmp_path / "w" / "model.safetensors").parent
    refused = message(path, num_classes=3)
    assert "for 5 classes, not 3: set `init_head` to replace (in Python, classifier='replace'" in refused
    assert refused.endswith("or use num_classes=5")
    assert load_pretrained(path, num_classes=5)[0].num_classes == 5  # type: ignore[attr-defined]
    model, variables, _ = load_pretrained(path, num_classes=3, classifier="replace")
    assert model == TINY(num_classes=3)
    new, old = (dict(tree["params"]) for tree in (variables, VARIABLES))
    head, _ = new.pop("output"), old.pop("output")
    assert_same(new, old)
    assert_same(variables["batch_stats"], VARIABLES["batch_stats"])
    # LeCun-normal, like the model's own.
    assert head["kernel"].shape == (8, 3) and 0.1 < head["kernel"].std() < 0.7
    other = load_pretrained(path, num_classes=3, classifier="replace", seed=1)[1]["params"]["output"]["kernel"]
    assert not np.array_equal(other, head["kernel"])
    same_count = load_pretrained(path, num_classes=5, classifier="replace")[1]["params"]["output"]
    assert not np.array_equal(same_count["kernel"], VARIABLES["params"]["output"]["kernel"])
    assert "num_classes is None with classifier='replace': it must be 1" in message(path, classifier="replace")
    assert "num_classes is 0 with classifier='keep': it must be 1" in message(path, num_classes=0)
    assert "unknown classifier 'kep'" in message(path, classifier="kep")


def test_weights_without_a_classifier_take_a_new_one_only(tmp_path):
    body = {name: array for name, array in STATE.items() if not name.startswith("fc.")}
    path = saved(tmp_path / "w" / "model.safetensors", body).parent
    assert "missing: fc.bias, fc.weight" in message(path)
    assert load_pretrained(path, num_classes=2, classifier="replace")[1]["params"]["output"]["kernel"].shape[-1] == 2


def test_a_file_needs_a_model_by_name_or_module(tmp_path):
    path = saved(tmp_path / "w.safetensors")
    assert "do not say which model they are for: pass model=NAME" in message(path)
    model, variables, preprocess = load_pretrained(path, model=TINY())
    assert preprocess is None
    assert_same(variables, VARIABLES)
    assert "for 5 classes, not 4" in message(path, model=TINY(num_classes=4))
    assert load_pretrained(path, model=TINY(), num_classes=4, classifier="replace")[0] == TINY(num_classes=4)
    assert "unknown model 'resnet21'" in message(path, model="resnet21")
    ours = saved(tmp_path / "ours.safetensors", VARIABLES)
    assert_same(load_pretrained(ours, model=TINY())[1], VARIABLES)
    replaced = load_pretrained(ours, model=TINY(), num_classes=4, classifier="replace")[1]
    assert_same(replaced["params"]["conv1"], VARIABLES["params"]["conv1"])
    assert replaced["params"]["output"]["kernel"].shape == (16 // 2, 4)


def test_weights_of_another_architecture_and_not_finite(tmp_path):
    path = saved(tmp_path / "w.safetensors")
    said = message(path, model=TINY(blocks=(1, 2)))
    assert "missing: layer2.1.bn1.bias" in said and "weights of ResNet for 16x16x3 images and 5 classes" in said
    said = message(path, model="lenet5", num_classes=5)
    assert "missing: " in said and "extra: " in said
    bad = {**STATE, "layer1.0.bn1.bias": np.full(4, np.nan, np.float32)}
    assert "not finite: layer1.0.bn1.bias;" in message(saved(path, bad), model=TINY())
    ours = saved(tmp_path / "ours.safetensors", VARIABLES)
    assert "missing: batch_stats/stage2_block2" in message(ours, model=TINY(blocks=(1, 2)))


def test_side_heads_are_left_out(tmp_path, monkeypatch):
    from cnn_jax.models.googlenet import googlenet_torchvision

    with_heads = googlenet_torchvision(num_classes=3)
    variables = drawn(with_heads, (64, 64, 3))
    names = namings(with_heads)["torchvision"].names
    state = to_torch(variables, names, flattened=flattened_maps(with_heads, (64, 64, 3)))
    path = saved(tmp_path / "w" / "model.safetensors", state, CONFIG | {"architecture": "googlenet"}).parent
    loaded = load_pretrained(path)[1]
    expected = {k: {n: t for n, t in tree.items() if not n.startswith("aux")} for k, tree in variables.items()}
    assert_same(loaded, expected)


class SideHead(nn.Module):
    num_classes: int

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.num_classes, name="output")(nn.Dense(3, name="fc")(x))


class WithSideHead(nn.Module):
    num_classes: int = 5
    input_shape: tuple[int, int, int] = (2, 2, 1)

    @nn.compact
    def __call__(self, x, *, train: bool):
        x = x.reshape(len(x), -1)
        SideHead(self.num_classes, name="aux1")(x)
        return nn.Dense(self.num_classes, name="output")(x)


def test_side_heads_get_new_classifiers_too(tmp_path):
    model: Any = WithSideHead()
    variables = drawn(model, model.input_shape)
    path = saved(tmp_path / "w.safetensors", to_torch(variables, namings(model)["plain"].names))
    replaced = load_pretrained(path, model=model, num_classes=4, classifier="replace")[1]["params"]
    assert replaced["aux1"]["output"]["kernel"].shape == (3, 4) and replaced["output"]["kernel"].shape == (4, 4)
    assert_same(replaced["aux1"]["fc"], variables["params"]["aux1"]["fc"])


@pytest.mark.parametrize("variables", [STATE, VARIABLES])
def test_number_types(tmp_path, variables):
    def typed(dtype: Any) -> Path:
        return saved(tmp_path / "w.safetensors", jax.tree.map(lambda array: array.astype(dtype), variables))

    for dtype in (np.float16, np.float64):
        loaded = load_pretrained(typed(dtype), model=TINY())[1]
        assert {leaf.dtype for leaf in jax.tree.leaves(loaded)} == {np.dtype(np.float32)}
    assert "whole numbers: " in message(typed(np.int32), model=TINY())
    huge = jax.tree.map(lambda array: np.full(array.shape, 1e300), variables)
    assert "not finite: " in message(saved(tmp_path / "w.safetensors", huge), model=TINY())


def test_a_run_of_several_networks_is_refused(tmp_path):
    run = make_run(tmp_path / "two", CONFIG_OF_RUN.override(members=2))
    assert "two is a run of 2 networks" in message("two")
    assert "a run of 2 networks" in message(run / "final.safetensors")
    with pytest.raises(UserError, match="a run of 2 networks"):
        export(run, tmp_path / "out.safetensors")


def test_damaged_header_of_an_exported_file(tmp_path):
    record = {"model": "lenet5", "model_args": None, "preprocess": {}}
    path = tmp_path / "w.safetensors"
    save_weights(path, STATE, {"cnn_jax": json.dumps(record)})
    assert "do not say which model they are for" in message(path)
    for preprocess in ({}, {"resize": 7}, {**GREY, "resize": 7}, {**GREY, "interpolation": 3}):
        save_weights(path, STATE, {"cnn_jax": json.dumps({**record, "model_args": [], "preprocess": preprocess})})
        assert message(path).count(str(path)) == 1


def test_flattened_maps_are_put_in_order(tmp_path):
    """A dense layer trained on channels-first maps reads the same pixels channels-last."""
    model: Any = VGG(3, convolutions=(1,), features=(4,), dense=(6, 5), input_shape=(8, 8, 3))
    variables = drawn(model, (8, 8, 3))
    state = to_torch(variables, namings(model)["torchvision"].names, flattened=flattened_maps(model, (8, 8, 3)))
    assert state["classifier.0.weight"].shape == (6, 4 * 4 * 4)
    assert not np.array_equal(state["classifier.0.weight"].T, variables["params"]["fc6"]["kernel"])
    assert_same(load_pretrained(saved(tmp_path / "w.safetensors", state), model=model)[1], variables)
    timm = namings(model)["timm"]
    flattened = flattened_maps(model, (8, 8, 3))
    state = to_torch(variables, timm.names, flattened=flattened, convolutions=timm.convolutions)
    assert state["pre_logits.fc1.weight"].shape == (6, 4, 4, 4) and state["pre_logits.fc2.weight"].shape == (5, 6, 1, 1)
    assert_same(load_pretrained(saved(tmp_path / "w.safetensors", state), model=model)[1], variables)


def test_a_run_is_a_source(tmp_path):
    run = make_run(tmp_path / "run")
    images, _ = digits("test[:7]")
    for source in (run, run / "final.safetensors"):
        model, variables, preprocess = load_pretrained(source)
        assert isinstance(preprocess, Preprocess)
        np.testing.assert_allclose(
            predict_outputs(model, variables, preprocess, images), expected_logits(images), rtol=1e-4, atol=1e-4
        )
    assert load_pretrained(run, num_classes=4, classifier="replace")[1]["params"]["output"]["kernel"].shape == (64, 4)
    assert "for 10 classes, not 4" in message(run, num_classes=4)
    assert "no config.json" in message(tmp_path)


def test_a_run_is_exported_and_comes_back(tmp_path):
    run = make_run(tmp_path / "run")
    path = export(run, tmp_path / "digits.safetensors")
    state, metadata, _ = read_state(path)
    assert set(state) == {"output.weight", "output.bias"} and metadata["format"] == "pt"
    images, _ = digits("test[:7]")
    # As in PyTorch: flatten channels-first, then one linear layer. (With one channel the order is the same.)
    theirs = (images / np.float32(255)).transpose(0, 3, 1, 2).reshape(7, -1) @ state["output.weight"].T
    np.testing.assert_allclose(theirs + state["output.bias"], expected_logits(images), rtol=1e-4, atol=1e-4)
    assert len(json.loads(metadata["cnn_jax"])["classes"]) == 10
    model, variables, preprocess = load_pretrained(path)
    original = cnn_jax.load(str(run))
    assert (model, preprocess) == (original.model, original.preprocess)
    assert_same(variables, original.variables)
    with pytest.raises(UserError, match="unknown naming 'torchvision'"):
        export(run, path, "torchvision")
    with pytest.raises(UserError, match="^w.pth does not end in .safetensors"):
        export(run, "w.pth")


def test_commands(tmp_path, capsys):
    run = make_run(tmp_path / "run")
    main(["export", str(run), "out.safetensors"])
    assert capsys.readouterr().out == "out.safetensors\n"
    assert set(load_weights("out.safetensors")[0]) == {"output.weight", "output.bias"}
    main(["list"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:-1]] == list(TORCHVISION)
    assert any(line.split()[:3] == ["resnet50", "80.858", "95.434"] for line in lines)
    with pytest.raises(SystemExit) as stop:
        guard(lambda: main(["export", "absent", "out.safetensors"]))
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said.count("\n") == 1 and "absent" in said


def test_every_published_file_has_its_network():
    for name, entry in TORCHVISION.items():
        model: Any = ARCHITECTURES[entry.architecture]()
        assert isinstance(model, nn.Module) and model.num_classes == 1000, name
        assert "torchvision" in namings(model)
        assert not getattr(model, "aux_heads", False)
    assert len({entry.file for entry in TORCHVISION.values()}) == len(TORCHVISION)


PICTURES = [(300, 200), (200, 300), (500, 375), (64, 64), (33, 1000), (257, 255)]


@pytest.mark.parametrize("name", ["alexnet", "resnet50", "efficientnet_b0", "inception_v3", "convnext_tiny"])
@pytest.mark.parametrize("size", PICTURES)
def test_images_are_prepared_as_torchvision_does(name, size):
    torch = pytest.importorskip("torch")
    from torch_nets import torchvision

    entry = TORCHVISION[name]
    weights = torchvision().models.get_model_weights(entry.architecture).DEFAULT
    assert weights.url == entry.url
    pixels = np.random.default_rng(0).integers(0, 256, (size[1] // 4 + 1, size[0] // 4 + 1, 3), np.uint8)
    image = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)
    ours = entry.preprocess.fit(image)
    theirs = weights.transforms()(image) * torch.tensor(IMAGENET_STD)[:, None, None]
    theirs = (theirs + torch.tensor(IMAGENET_MEAN)[:, None, None]) * 255
    np.testing.assert_allclose(theirs.permute(1, 2, 0).numpy(), ours, atol=1e-2)


@pytest.mark.parametrize("name", TORCHVISION)
def test_accuracies_and_sizes_are_torchvisions(name):
    pytest.importorskip("torch")
    from torch_nets import torchvision

    entry = TORCHVISION[name]
    weights = torchvision().models.get_model_weights(entry.architecture)
    published = [w for w in weights if w.url == entry.url]
    assert published, f"torchvision publishes {[w.url for w in weights]}"
    accuracy, transform = published[0].meta["_metrics"]["ImageNet-1K"], published[0].transforms()
    assert (accuracy["acc@1"], accuracy["acc@5"]) == (entry.top1, entry.top5)
    preprocess = entry.preprocess
    assert transform.resize_size == [preprocess.resize] and transform.crop_size == [preprocess.image_shape[0]]
    assert transform.interpolation.value == preprocess.interpolation
    assert (weights.DEFAULT.url == entry.url) == (not name.endswith(".v1"))


def test_preprocessing_of_files(tmp_path):
    preprocess = PublishedPreprocess((8, 8, 3), (0.5,) * 3, (0.25,) * 3, resize=10)
    picture = Image.new("RGBA", (40, 20), (255, 0, 0, 255))
    picture.save(tmp_path / "red.png")
    assert (preprocess.read(tmp_path / "red.png") == [255, 0, 0]).all()
    grey = PublishedPreprocess((8, 8, 1), (0.5,), (0.25,), resize=8, interpolation="bicubic")
    assert grey.read(tmp_path / "red.png").shape == (8, 8, 1)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"broken\.png' cannot be read"):
        preprocess.read(tmp_path / "broken.png")
    assert PublishedPreprocess.from_json(preprocess.to_json()) == preprocess
    plain = Preprocess((8, 8, 1), (0.5,), (0.25,))
    assert PublishedPreprocess.from_json(plain.to_json()) == plain
    with pytest.raises(UserError, match="odd is not JSON with image_shape, mean and std"):
        PublishedPreprocess.from_json("[]", "odd")
    with pytest.raises(UserError, match="resize must be at least 8"):
        PublishedPreprocess((8, 8, 1), (0.5,), (0.25,), resize=7)


@pytest.mark.parametrize("arguments", [{}, {"num_classes": 5, "in_chans": 3, "drop_rate": 0.2, "global_pool": "avg"}])
def test_a_folder_written_by_timms_save_for_hf(tmp_path, arguments):
    """timm's default is a pickle, and it writes the arguments with which the model was made."""
    torch = pytest.importorskip("torch")
    labels = {str(index): f"class {index}" for index in range(5)}
    (tmp_path / "w").mkdir()
    torch.save({name: torch.tensor(array) for name, array in STATE.items()}, tmp_path / "w" / "pytorch_model.bin")
    config = CONFIG | {"num_features": 8, "global_pool": "avg", "label_names": labels, "model_args": arguments}
    (tmp_path / "w" / "config.json").write_text(json.dumps(config))
    found = open_pretrained(tmp_path / "w", num_classes=5, class_names=[f"class {k}" for k in range(5)])
    assert_same(found.variables, VARIABLES)
    assert found.classifier == "classifier kept"


@pytest.mark.parametrize("prefix", ["model.", "net.", "backbone.", "a.b.", "model._orig_mod.", "_orig_mod.net.module."])
def test_a_network_inside_another_is_found(tmp_path, prefix):
    inside = {prefix + name: array for name, array in STATE.items()}
    beside = {"criterion.weight": np.ones(3, np.float32), "metric.conv1.weight": np.ones(3, np.float32)}
    path = saved(tmp_path / "w.safetensors", inside | beside)
    assert_same(load_pretrained(path, model=TINY())[1], VARIABLES)
    replaced = load_pretrained(path, model=TINY(), num_classes=3, classifier="replace")[1]
    assert_same(replaced["params"]["conv1"], VARIABLES["params"]["conv1"])
    one_less = {name: array for name, array in inside.items() if not name.endswith("fc.bias")}
    assert "missing: fc.bias; take" in message(saved(path, one_less | beside), model=TINY())


def test_a_network_inside_another_with_old_names():
    """torchvision's files of DenseNet have norm.1 for norm1."""
    layer = "features.denseblock1.denselayer1"
    old = {f"model.{layer}.norm.1.weight": 0, f"model.{layer}.conv.1.weight": 0, "loss.weight": 0}
    assert prefixes(densenet.current(old), [f"{layer}.norm1.weight", f"{layer}.conv1.weight"]) == ["model."]


def test_a_module_of_ours_may_be_called_module(tmp_path):
    class Wrapping(nn.Module):
        num_classes: int = 5
        input_shape: tuple[int, int, int] = (2, 2, 1)

        @nn.compact
        def __call__(self, x, *, train: bool):
            return nn.Dense(self.num_classes, name="output")(SideHead(4, name="module")(x.reshape(len(x), -1)))

    model: Any = Wrapping()
    variables = drawn(model, model.input_shape)
    state = to_torch(variables, namings(model)["plain"].names)
    assert "module.fc.weight" in state
    assert_same(load_pretrained(saved(tmp_path / "w.safetensors", state), model=model)[1], variables)


def test_of_two_networks_none_is_taken(tmp_path):
    both = {prefix + name: array for name, array in STATE.items() for prefix in ("student.", "teacher.")}
    said = message(saved(tmp_path / "w.safetensors", both), model=TINY())
    assert "holds several networks that fit, under student., teacher.: save the state dict of one" in said


def test_which_weights_were_taken_is_said(tmp_path, capsys):
    average = {f"ema_model.{name}": array + np.float32(1) for name, array in STATE.items()}
    path = saved(tmp_path / "w.safetensors", {**{f"model.{name}": a for name, a in STATE.items()}, **average})
    plus_one = jax.tree.map(lambda array: array + np.float32(1), VARIABLES)
    for which, expected, said in (
        ("auto", plus_one, "the moving average of the weights"),
        ("ema", plus_one, "the moving average of the weights"),
        ("plain", VARIABLES, "the weights without averaging"),
    ):
        assert_same(load_pretrained(path, model=TINY(), weights=which)[1], expected)  # type: ignore[arg-type]
        assert capsys.readouterr().err == f"{path}: {said}\n"
    only = saved(tmp_path / "only.safetensors", average)
    refused = message(only, model=TINY(), weights="plain")
    assert "only.safetensors has only a moving average of the weights: set `init_weights` to auto or ema" in refused
    plain = saved(tmp_path / "plain.safetensors")
    assert_same(load_pretrained(plain, model=TINY(), weights="plain")[1], VARIABLES)
    assert "has no moving average of the weights: set `init_weights` to auto" in message(
        plain, model=TINY(), weights="ema"
    )
    assert "unknown weights 'emma'; perhaps you meant ema" in message(plain, model=TINY(), weights="emma")
    assert capsys.readouterr().err == ""


def test_weights_without_side_heads(tmp_path):
    """Such as timm's Inception-v3."""
    path = saved(tmp_path / "w.safetensors", {"fc.weight": np.zeros((5, 2048), np.float32)})
    said = message(path, model="inception_v3")
    assert "have no side heads: set `model_args` to aux_heads=false (in Python, aux_heads=False)" in said


CLASSES = ("ant", "bee", "cat", "dog", "eel")
MOVED = ("eel", "ant", "cat", "bee", "dog")


def test_a_kept_classifier_is_put_in_the_order_of_the_classes(tmp_path):
    path = tmp_path / "w.safetensors"
    save_weights(path, STATE, {"cnn_jax": json.dumps({"classes": CLASSES})})
    old = VARIABLES["params"]["output"]

    def found(*names: str) -> Any:
        return open_pretrained(path, model=TINY(), num_classes=5, class_names=names, classifier="auto").variables

    assert_same(found(*CLASSES), VARIABLES)
    moved = found(*MOVED)
    assert_same(moved["params"]["output"], {name: array[..., [4, 0, 2, 1, 3]] for name, array in old.items()})
    assert_same(moved["params"]["conv1"], VARIABLES["params"]["conv1"])
    replaced = found("ant", "bee", "cat", "dog", "elk")["params"]["output"]
    assert replaced["kernel"].shape == old["kernel"].shape and not np.array_equal(replaced["kernel"], old["kernel"])


OTHER = ("ant", "bee", "cat", "dog", "elk")
NAMED = "the weights are for ant, bee, cat, dog, eel"


@pytest.mark.parametrize(
    ("theirs", "ours", "count", "classifier", "kept", "order", "origin"),
    [
        (CLASSES, CLASSES, 5, "auto", True, None, "classifier kept"),
        (CLASSES, MOVED, 5, "auto", True, [4, 0, 2, 1, 3], "classifier kept, its classes put in the data's order"),
        (CLASSES, MOVED, 5, "keep", True, [4, 0, 2, 1, 3], "classifier kept, its classes put in the data's order"),
        (CLASSES, OTHER, 5, "auto", False, None, f"new classifier: {NAMED}"),
        (CLASSES, OTHER, 5, "keep", True, None, "classifier kept, though it is for ant, bee, cat, dog, eel"),
        (CLASSES, OTHER[:2], 5, "auto", False, None, "new classifier: the weights are for 5 classes"),
        (CLASSES, CLASSES, 5, "replace", False, None, "new classifier"),
        (CLASSES, (), 5, "auto", True, None, "classifier kept; the weights do not name its classes"),
        (CLASSES[:4], MOVED, 5, "auto", True, None, "classifier kept; the weights do not name its classes"),
        (("a", "a"), ("a", "b"), 2, "auto", True, None, "classifier kept; the weights do not name its classes"),
        ((), MOVED, 5, "auto", True, None, "classifier kept; the weights do not name its classes"),
        ((), MOVED, None, "auto", False, None, "new classifier: the weights have none"),
        ([f"c{k}" for k in range(7)], range(7), 7, "auto", False, None, None),
    ],
)
def test_where_the_classifier_comes_from_is_said(theirs, ours, count, classifier, kept, order, origin):
    if origin is None:
        origin = "new classifier: the weights are for c0, c1, c2, c3, c4 and 2 more"
        ours = list(map(str, ours))
    assert choose_head(theirs, ours, count, len(ours) or 5, classifier) == (kept, order, origin)


def test_the_classes_of_a_run_and_of_its_export_are_known(tmp_path):
    run = make_run(tmp_path / "run")
    path = export(run, tmp_path / "digits.safetensors")
    names = [str(digit) for digit in range(10)]
    kernel = load_pretrained(run)[1]["params"]["output"]["kernel"]
    for source in (run, path):
        found = open_pretrained(source, num_classes=10, class_names=names[::-1])
        assert found.classifier == "classifier kept, its classes put in the data's order"
        assert_same(found.variables["params"]["output"]["kernel"], kernel[:, ::-1])
