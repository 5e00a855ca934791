"Models on the hub: what is uploaded, what comes back, what is refused, and what the model card says."

import html.parser
import json
import re

import huggingface_hub
import pytest
import torch

from mdprop import model as module
from mdprop.data import glyphs
from mdprop.model import Embedder, ModelError, model_card
from mdprop.norm import convert_multi_norm, domains_of, fold_domain, use_domain
from mdprop.robustness import evaluate, robustness_report
from mdprop.runs import Run, load, write_json
from mdprop.train import fit


def small(share: str | None = None, domains: tuple[str, ...] = ("clean", "single", "multi"), **settings) -> Embedder:
    model = Embedder(**(dict(backbone="resnet10", dim=8, image_shape=(1, 16, 16), mean=[0.9], std=[0.2], width=4) | settings))
    if domains:
        convert_multi_norm(model, domains, share=share)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(0.1 * torch.rand_like(tensor))
    return model.eval()


@pytest.fixture
def hub(tmp_path, monkeypatch):
    "A hub that is a folder: what is uploaded lies in it, and can be downloaded."
    calls = []

    class Api:
        def __init__(self, token=None, **_):
            self.token = token

        def create_repo(self, repo_id, private=None, exist_ok=False):
            calls.append(("create", repo_id, private, self.token))
            return f"https://hub.example/{repo_id}"

        def upload_folder(self, repo_id, folder_path, commit_message, allow_patterns):
            target = tmp_path / "hub" / repo_id
            target.mkdir(parents=True, exist_ok=True)
            for path in sorted(module.Path(folder_path).iterdir()):
                if path.name in allow_patterns:
                    (target / path.name).write_bytes(path.read_bytes())
            calls.append(("upload", sorted(path.name for path in target.iterdir()), commit_message))

    def download(repo_id, revision=None, token=None, allow_patterns=(), **_):
        calls.append(("download", repo_id, revision, sorted(allow_patterns)))
        folder = tmp_path / "hub" / repo_id
        if not folder.is_dir():
            raise huggingface_hub.errors.LocalEntryNotFoundError("404 Client Error\nmore lines")
        return str(folder)

    monkeypatch.setattr(module, "HfApi", Api)
    monkeypatch.setattr(module, "snapshot_download", download)
    return calls


@pytest.mark.parametrize("share", [None, "statistics", "affine"])
def test_there_and_back_through_the_hub(hub, share):
    model, x = small(share), torch.rand(5, 1, 16, 16)
    assert model.push_to_hub("me/glyphs", card="# mine", private=True, token="t") == "https://hub.example/me/glyphs"
    again = Embedder.from_pretrained("me/glyphs", revision="v1")
    assert hub == [
        ("create", "me/glyphs", True, "t"),
        ("upload", ["README.md", "config.json", "model.safetensors"], "Save a model of mdprop"),
        ("download", "me/glyphs", "v1", ["config.json", "model.safetensors"]),
    ]
    assert domains_of(again) == domains_of(model) and not again.training and again.config == model.config
    for domain in domains_of(model):
        with use_domain(model, domain), use_domain(again, domain):
            assert torch.equal(model(x), again(x))


def test_an_ordinary_model_and_one_without_a_head(tmp_path):
    for name, model in (("plain", small(domains=())), ("headless", small(dim=None))):
        again = Embedder.from_pretrained(model.save_pretrained(tmp_path / name))
        assert all(torch.equal(one, two) for one, two in zip(model.state_dict().values(), again.state_dict().values(), strict=True))


def test_a_backbone_of_ones_own_is_given_again(tmp_path):
    def backbone():
        return torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4))

    model, x = convert_multi_norm(Embedder(backbone(), dim=8, image_shape=(1, 16, 16)), ("clean", "multi")).eval(), torch.rand(2, 1, 16, 16)
    folder = model.save_pretrained(tmp_path / "own")
    assert torch.equal(Embedder.from_pretrained(folder, backbone=backbone())(x), model(x))
    with pytest.raises(ModelError, match="give one like it as backbone="):
        Embedder.from_pretrained(folder)
    with pytest.raises(ModelError, match="do not fit this backbone"):
        Embedder.from_pretrained(folder, backbone=torch.nn.Sequential(torch.nn.Conv2d(1, 5, 3), torch.nn.BatchNorm2d(5)))


def test_a_model_that_could_not_be_read_is_not_written(hub, tmp_path):
    folded = fold_domain(small(), "clean", torch.rand(2, 1, 16, 16))
    with pytest.raises(ModelError, match="weights and settings do not fit"):
        folded.save_pretrained(tmp_path / "folded")
    with pytest.raises(ModelError):
        folded.push_to_hub("me/folded")
    assert not (tmp_path / "folded").exists() and hub == []


def test_damaged_hostile_and_foreign_folders_are_refused(tmp_path, hub):
    folder = small().save_pretrained(tmp_path / "model")
    good, weights = json.loads((folder / "config.json").read_text()), (folder / "model.safetensors").read_bytes()

    def refused(told: str, config=good, tensors: bytes | None = weights) -> None:
        (folder / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
        (folder / "model.safetensors").unlink(missing_ok=True)
        if tensors is not None:
            (folder / "model.safetensors").write_bytes(tensors)
        with pytest.raises(ModelError, match=told):
            Embedder.from_pretrained(folder)

    refused("is damaged", tensors=weights[:-10])
    refused("is damaged", tensors=b"\x80\x04pickle")
    refused("is damaged", config="{")
    refused("no model of mdprop", config="[]")
    refused("has format 2", config=good | {"format": 2})
    for name, value in [("width", 10**12), ("width", True), ("dim", -1), ("image_shape", [1, 16]), ("mean", [float("nan")]), ("std", [0]), ("backbone", "a:b")]:
        refused(f"see {name}", config=good | {"model": good["model"] | {name: value}})
    for name, value in [("domains", ["a", 1]), ("domains", ["__import__('os')"]), ("share", "all"), ("model", {})]:
        refused(f"see {name}", config=good | {name: value})
    refused("weights and settings do not fit", config=good | {"domains": ["clean"]})
    refused("unknown backbone|timm is not installed", config=good | {"model": good["model"] | {"backbone": "no_such_net"}})
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04")
    refused("pytorch_model.bin is a pickle, which could run anything", tensors=None)
    with pytest.raises(ModelError, match=r"the hub does not give it: 404 Client Error$"):
        Embedder.from_pretrained("me/nothing")
    for name in ("../secrets", "a/b/c", "-x y", "/etc"[:1] + "no-such-folder"):
        with pytest.raises(ModelError, match="no name of the hub"):
            Embedder.from_pretrained(name)


def test_a_run_folder_says_what_it_is(run):
    with pytest.raises(ModelError, match=r"is a run: load_run\(folder\).model\(\) gives its model"):
        Embedder.from_pretrained(run.path)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    train, test = glyphs(40, size=16).split_classes()
    run = fit(train, "mdprop", tmp_path_factory.mktemp("hub") / "mine", width=4, dim=8, epochs=1, progress=False)
    evaluate(run, test, steps=1)
    robustness_report(run, test, ("ES:R",), size=8, steps=1, quick=True, progress=False)
    return run


def test_the_card_tells_what_was_measured_and_how_it_is_loaded(run, hub):
    card = model_card(run, "me/glyphs", license="apache-2.0")
    head = card.split("---")[1]
    assert 'library_name: mdprop' in head and '- "mdprop"' in head and 'license: "apache-2.0"' in head
    found = run.results["test"]["metrics"]
    assert f"| recall\\_at\\_1 | {found['recall_at_1']:.4f} |" in card and f"| recall\\_at\\_1\\_multi | {found['recall_at_1_multi']:.4f} |" in card
    report = json.loads((run.path / "robustness.json").read_text(encoding="utf-8"))["scores"]
    noise = next(row for row in report if row["distribution"] == "noise" and row["strength"] == "severity 5" and row["measure"] == "Recall@1")
    assert f"| noise | severity 5 | Recall@1 | {noise['score']:.1f} ± {noise['error']:.1f} |" in card
    assert "drawn by mdprop, Apache-2.0." in card and "8/255, 1 step" in card and "white-box" in card
    run.model().push_to_hub("me/glyphs", card=card)
    code = re.search(r"```py\n(.*?)```", card, re.DOTALL).group(1)
    space = {"images": torch.rand(3, 1, 16, 16)}
    exec(code, space)  # what a reader of the card would type
    assert space["z"].shape == (3, 8)


def test_the_card_says_which_classes_domain_and_queries_were_measured(tmp_path):
    train, test = glyphs(40, size=16).split_classes()
    run = fit(train, "mdprop", tmp_path / "run", width=4, dim=8, epochs=1, progress=False)
    evaluate(run, test, steps=1, attacked=12, domain="clean", name="new")
    with pytest.warns(UserWarning, match="20 of 20 test classes were in the training"):
        evaluate(run, train, steps=2, domain="attacked", name="leaked")
    card = model_card(run)
    assert f"`new`: {test.name}, classes that it has not seen in training; single, multi: 1 step of an attack of 8/255 on 12 images, white-box" in card
    images = f"{len(train)} images"
    leaked = f"`leaked`: {train.name}, 20 of its 20 classes were seen in training; through the norms of attacked; single, multi: 2 steps"
    assert f"{leaked} of an attack of 8/255 on {images}, white-box" in card and card.count("not seen in training") == 1
    stored = run.results
    for found in stored.values():  # as an earlier version wrote them
        del found["settings"]["seen"], found["settings"]["attacked"]
    write_json(run.path / "results.json", stored)
    assert model_card(run).count("it is not recorded whether training has seen its classes") == 2


def test_words_of_others_stay_words(run, tmp_path):
    evil = "<script>alert(1)</script> | [x](javascript:y)\n# `head` *b*"
    folder = tmp_path / "evil"
    folder.mkdir()
    config = json.loads((run.path / "config.json").read_text(encoding="utf-8"))
    config["data"]["name"] = config["recipe"]["name"] = config["recipe"]["source"] = evil
    write_json(folder / "config.json", config)
    settings = dict(data=evil, steps=evil, eps=0.01, seen=evil, classes=evil, domain=evil, attacked=evil)
    write_json(folder / "results.json", {evil: dict(settings=settings, metrics={evil: 1.0})})
    card = model_card(load(folder), f"me/x'); {evil}", data_license=evil)
    body = card.split("---", 2)[2]

    class Tags(html.parser.HTMLParser):
        found: list = []  # noqa: RUF012

        def handle_starttag(self, tag, attrs):
            self.found.append(tag)

    Tags().feed(body)
    assert Tags.found == [] and "](javascript" not in body and "\n# `head`" not in body and "');" not in body
    assert all(line.startswith(("#", "|", "from", "model", "z =", "```")) or "script" not in line or "&lt;script" in line for line in body.splitlines())
    tags = [line for line in card.split("---")[1].splitlines() if "script" in line]
    assert [json.loads(line.removeprefix("- ")) for line in tags] == [evil]
