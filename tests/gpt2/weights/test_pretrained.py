"""gpt2.weights.pretrained: GPT-2's weights from files and from the hub, and what is refused."""

import importlib.util
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from gpt2.generate.decoding import generate
from gpt2.model import GPT
from gpt2.tokenizer import Tokenizer
from gpt2.weights import load_pretrained
from gpt2.weights.export import export
from gpt2.weights.hugging_face import tensors_to_hugging_face
from gpt2.weights.pretrained import find_pretrained
from tests.gpt2.data.hub_stand_in import hub
from tests.gpt2.stand_ins import loud_model, run_forked, run_python


@pytest.fixture
def model() -> GPT:
    """A small model, all of whose parameters differ from those of a fresh one."""
    return loud_model(vocab_size=257, block_size=12, n_inner=24)


@pytest.fixture
def folder(model: GPT, tmp_path: Path) -> Path:
    """The model in Hugging Face's format."""
    export(model, Tokenizer.train(["the text"], 257, processes=1), tmp_path / "weights")
    return tmp_path / "weights"


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    values = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in values.items() if v != "absent"}))


def edit_weights(folder: Path, changes: dict[str, Tensor]) -> None:
    path = folder / "model.safetensors"
    save_file(load_file(path) | changes, path)


def assert_same(a: GPT, b: GPT) -> None:
    parameters = dict(b.named_parameters())
    assert parameters.keys() == dict(a.named_parameters()).keys()
    for name, parameter in a.named_parameters():
        assert torch.equal(parameter, parameters[name]), name


@pytest.mark.parametrize("attn", ["naive", "sdpa", "flash"])
def test_a_trained_gpt2_gives_its_logits_loss_and_text(real_data, attn):
    """Expected values: computed in float64 by transformers, kept in float32.

    In float64 ours must be the same to the last digit that they are stored with (logits down to
    -20). In fp32 they carry its roundings, some 2e-5; loss and greedy text must not.
    """
    model = load_pretrained(real_data / "gpt2-tiny", attn=attn)
    expected = np.load(real_data / "gpt2-tiny/expected.npz")
    assert not model.training
    idx = torch.from_numpy(expected["input_ids"])
    greedy = generate(model, torch.from_numpy(expected["prompt_ids"]), 80, temperature=0)
    assert greedy.tolist() == expected["greedy_ids"].tolist()
    _, loss = model(idx[:, :-1], idx[:, 1:].contiguous())
    assert loss.item() == pytest.approx(float(expected["nll"].mean()), abs=1e-5)
    fp32, _ = model(idx)
    model.double()
    seen = []
    model.h[0].ln_1.register_forward_hook(lambda module, args, output: seen.append(args[0]))
    logits, _ = model(idx)
    assert (fp32 - logits).abs().max() < 32 * torch.finfo(torch.float32).eps * logits.abs().max()
    assert np.abs(logits.detach().numpy() - expected["logits"]).max() < 2e-6
    for number, hidden in ((0, seen[0]), (3, model.hidden(idx))):
        assert np.abs(hidden.detach().numpy() - expected[f"hidden_{number}"]).max() < 1e-5


def test_bin_and_safetensors_hold_the_same(real_data, tmp_path):
    for name in ("config.json", "pytorch_model.bin"):
        shutil.copy(real_data / "gpt2-tiny" / name, tmp_path)
    assert_same(load_pretrained(tmp_path), load_pretrained(real_data / "gpt2-tiny"))


def without_prefix(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}


def with_masks(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """As the first files of GPT-2 are."""
    for layer in range(2):
        tensors[f"h.{layer}.attn.bias"] = torch.ones(1, 1, 12, 12).tril().byte()
        tensors[f"transformer.h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    return tensors


def with_tied_head(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {"lm_head.weight": tensors["transformer.wte.weight"].clone(), **tensors}


def of_a_compiled_ddp_model(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"module._orig_mod.{name}": tensor for name, tensor in tensors.items()}


def one_object_under_two_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """As in `state_dict(keep_vars=True)` of a tied model; and one causal mask for all layers."""
    parameters: dict[str, Tensor] = {k: torch.nn.Parameter(v) for k, v in tensors.items()}
    mask = torch.ones(1, 1, 12, 12).tril().bool()
    parameters |= {f"transformer.h.{layer}.attn.bias": mask for layer in range(2)}
    return parameters | {"lm_head.weight": parameters["transformer.wte.weight"]}


def views_of_one_tensor(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    flat = torch.cat([tensor.flatten() for tensor in tensors.values()])
    parts = flat.split([tensor.numel() for tensor in tensors.values()])
    return {k: part.view(v.shape) for (k, v), part in zip(tensors.items(), parts, strict=True)}


FORMS = ["safetensors", "sharded", "bin", "old bin", "sharded bin"]
CHANGES = [
    dict, without_prefix, with_masks, with_tied_head, of_a_compiled_ddp_model,
    one_object_under_two_names, views_of_one_tensor,
]  # fmt: skip
# Safetensors refuses to write tensors that share their memory.
SHARED = {one_object_under_two_names, views_of_one_tensor}


@pytest.mark.parametrize(
    ("form", "change"),
    [
        (form, change)
        for form in FORMS
        for change in CHANGES
        if "bin" in form or change not in SHARED
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_every_form_of_the_files_is_read(model, folder, form, change):
    tensors = change(tensors_to_hugging_face(model))
    (folder / "model.safetensors").unlink()
    kind = "bin" if "bin" in form else "safetensors"
    stem = "pytorch_model" if kind == "bin" else "model"
    names = sorted(tensors)
    parts = {f"{stem}.{kind}": names}
    if "sharded" in form:
        parts = {f"{stem}-0000{i + 1}-of-00002.{kind}": names[i::2] for i in range(2)}
        index = {name: file for file, part in parts.items() for name in part}
        text = json.dumps({"metadata": {}, "weight_map": index})
        (folder / f"{stem}.{kind}.index.json").write_text(text)
    for file, part in parts.items():
        content = {name: tensors[name] for name in part}
        if kind == "safetensors":
            save_file(content, folder / file)
        else:
            torch.save(content, folder / file, _use_new_zipfile_serialization="old" not in form)
    assert_same(load_pretrained(folder), model)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types_become_float32(model, folder, dtype):
    edit_weights(folder, {k: v.to(dtype) for k, v in tensors_to_hugging_face(model).items()})
    loaded = load_pretrained(folder)
    for name, parameter in loaded.named_parameters():
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter, model.get_parameter(name).to(dtype).float()), name


def test_untied_heads_and_shorter_contexts(model, folder):
    head = torch.randn(257, 16)
    edit_weights(folder, {"lm_head.weight": head})
    edit_config(folder, tie_word_embeddings=False)
    loaded = load_pretrained(folder, block_size=5, attn="naive", dropout=0.1)
    assert torch.equal(loaded.lm_head.weight[:257], head)
    assert not loaded.lm_head.weight[257:].any()
    assert torch.equal(loaded.wpe.weight, model.wpe.weight[:5])
    assert (loaded.config.attn, loaded.config.dropout) == ("naive", 0.1)
    with pytest.raises(ValueError, match="learned positions for 12 tokens, got 13"):
        load_pretrained(folder, block_size=13)


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("transformer.h.2.ln_1.bias", torch.zeros(16), "is no part of a GPT-2 .* n_layer=2"),
        ("wte.weight", torch.zeros(257, 16), "is there twice"),
        ("transformer.h.0.mlp.c_fc.weight", torch.zeros(24, 16), r"has shape \(24.* \(16, 24\)"),
        ("transformer.wte.weight", torch.zeros(384, 16), r"has shape \(384.* \(257, 16\)"),
        ("transformer.wpe.weight", torch.full((12, 16), torch.nan), "has values .* not finite"),
        ("transformer.ln_f.bias", 1e300 * torch.ones(16).double(), ".* not finite in float32"),
        ("lm_head.weight", torch.zeros(257, 16), r"is not wte\.weight, although .* they are tied"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_tensors_are_refused_by_name(folder, name, tensor, message):
    edit_weights(folder, {name: tensor})
    with pytest.raises(ValueError, match=rf"model\.safetensors: {name} {message}"):
        load_pretrained(folder)


# The types that safetensors 0.8 has, the bits of each, and what a tensor of one holds.
STORED = {
    **dict.fromkeys(("F64", "F32", "F16", "BF16"), "weights"),
    **dict.fromkeys(("F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), "quantised weights"),
    **dict.fromkeys(("F8_E8M0", "F6_E2M3", "F6_E3M2", "F4"), "quantised weights"),
    **dict.fromkeys(("I8", "I16", "I32", "I64", "U8", "U16", "U32", "U64"), "whole numbers"),
    "BOOL": "truth values",
    "C64": "complex numbers",
}


@pytest.mark.parametrize(("dtype", "held"), STORED.items())
def test_every_type_of_safetensors_is_read_or_refused_with_the_cause(folder, dtype, held):
    path = folder / "model.safetensors"
    others = {k: v for k, v in load_file(path).items() if k != "transformer.ln_f.bias"}
    save_file(others, path)
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    begin = len(content) - 8 - size
    bits = int("".join(filter(str.isdigit, dtype.partition("_")[0])) or 8)
    header["transformer.ln_f.bias"] = {
        "dtype": dtype, "shape": [16], "data_offsets": [begin, begin + 2 * bits],
    }  # fmt: skip
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + size :] + bytes(2 * bits))
    if held == "weights":
        assert not load_pretrained(folder).ln_f.bias.any()
    else:
        message = rf"ln_f\.bias holds {held} \(.*\): only weights in float32, float16, bfloat16 or"
        with pytest.raises(ValueError, match=message):
            load_pretrained(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer_norm_epsilon": 1e-6}, "layer_norm_epsilon=1e-06 cannot be loaded"),
        ({"scale_attn_weights": False}, "scale_attn_weights=False cannot"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=True cannot"),
        ({"reorder_and_upcast_attn": True}, "reorder_and_upcast_attn=True cannot"),
        ({"add_cross_attention": True}, "add_cross_attention=True cannot"),
        ({"model_type": "llama"}, "describes a model of type 'llama'; only gpt2"),
        ({"n_head": "absent"}, "n_head must be a whole number, got None"),
        ({"n_layer": "2"}, "n_layer must be a whole number, got '2'"),
        ({"n_inner": -4}, "n_inner must be a whole number or null, got -4"),
        ({"n_head": 3}, "config.json: n_embd=16 cannot be split over n_head=3"),
        ({"n_layer": 3}, r"model\.safetensors lacks h\.2\.ln_1\.weight, .* and 9 more"),
    ],
    ids=str,
)
def test_models_that_ours_cannot_be_are_refused_by_option(folder, changes, message):
    edit_config(folder, **changes)
    with pytest.raises(ValueError, match=message):
        load_pretrained(folder)


@pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None, reason="needs the library transformers"
)
def test_the_tanh_form_of_gelu_is_read_by_all_its_names_in_transformers(folder):
    code = (
        "import json, math, torch\n"
        "from transformers.activations import ACT2FN\n"
        "x = torch.linspace(-40, 40, 4001, dtype=torch.float64)\n"
        "gelu = x / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))\n"
        "functions = {name: ACT2FN[name].double() for name in ACT2FN}\n"
        "far = {name: (f(x) - gelu).abs().max().item() for name, f in functions.items()}\n"
        "print(json.dumps(far))\n"
    )
    # Our package `kernels` is not the one that transformers knows.
    done = run_python("-c", code, cwd=folder, PYTHONPATH="", HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stderr
    far = json.loads(done.stdout)
    assert "gelu_new" in far
    for name, distance in far.items():
        edit_config(folder, activation_function=name)
        if distance < 1e-12:
            assert find_pretrained(folder).config.mlp == "gelu"
        else:
            assert distance > 1e-4
            message = f"activation_function='{name}' cannot be loaded: here the MLP has .* tanh"
            with pytest.raises(ValueError, match=message):
                find_pretrained(folder)


def test_a_head_that_is_not_the_embedding_is_loaded_as_the_message_says(folder):
    head = torch.ones(257, 16)
    edit_weights(folder, {"lm_head.weight": head})
    with pytest.raises(
        ValueError, match=r"tie_word_embeddings.*: set it to false there to load bo"
    ):
        load_pretrained(folder)
    edit_config(folder, tie_word_embeddings=False)
    assert torch.equal(load_pretrained(folder).lm_head.weight[:257], head)


def test_what_gpt2s_options_leave_out_is_gpt2(model, folder):
    """The oldest config.json name the shape alone."""
    values = json.loads((folder / "config.json").read_text())
    shape = ("n_layer", "n_head", "n_embd", "vocab_size", "n_positions", "n_inner")
    (folder / "config.json").write_text(json.dumps({k: values[k] for k in shape}))
    assert_same(load_pretrained(folder), model)


def write_bin(content: object, **options: int) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        torch.save(content, folder / "pytorch_model.bin", **options)

    return write


@pytest.mark.filterwarnings("ignore:.*deprecated")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (Tensor.to_sparse, r"is torch\.sparse_coo on cpu: only dense weights"),
        (lambda t: t.to("meta"), r"is torch\.strided on meta: only dense weights"),
        (
            lambda t: torch.quantize_per_tensor(t, 1.0, 0, torch.qint8),
            r"holds quantised weights \(torch\.qint8\)",
        ),
    ],
)
def test_tensors_that_only_pytorchs_files_hold_are_refused_with_the_cause(
    model, folder, change, message
):
    bias = {"transformer.ln_f.bias": change(torch.zeros(16))}
    write_bin(tensors_to_hugging_face(model) | bias)(folder)
    with pytest.raises(ValueError, match=rf"ln_f\.bias {message}"):
        load_pretrained(folder)


def cut_safetensors(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-9])


def cut_bin(folder: Path) -> None:
    write_bin({"wte.weight": torch.zeros(99)})(folder)
    path = folder / "pytorch_model.bin"
    path.write_bytes(path.read_bytes()[:-99])


def write_index(*files: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        index = {"weight_map": {f"tensor{i}": file for i, file in enumerate(files)}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    return write


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut_safetensors, r"model\.safetensors cannot be read as safetensors"),
        (lambda f: (f / "model.safetensors").write_text("version https://git-lfs"), "git-lfs's pl"),
        (lambda f: (f / "model.safetensors").unlink(), "holds no weights: expected one of model"),
        (cut_bin, r"pytorch_model\.bin cannot be read as a PyTorch file"),
        (write_bin({"wte.weight": Path()}), r"pytorch_model\.bin .* holds more than tensors"),
        (
            write_bin({"wte.weight": torch.ones(2)}, pickle_protocol=4),
            "is of protocol 4, and only 3",
        ),
        (write_bin(torch.nn.Linear(2, 2)), "more than tensors, .* global: GLOBAL torch.nn.modules"),
        (write_bin({"model": {}, "step": 3}), "'model' is a dict, not a tensor"),
        (write_bin([torch.zeros(1)]), r"pytorch_model\.bin holds a list, not named tensors"),
        (write_index("model-00001-of-00002.safetensors"), r"model-00001.* is missing; .* names 1"),
        (
            lambda f: [
                write_index()(f),
                (f / "model.safetensors.index.json").write_text('{"weight_map": ["a"]}'),
            ],
            r"index\.json is not an index of shards: copy or download it anew",
        ),
        (write_index("../x.safetensors"), "names '../x.safetensors', which is no file beside"),
        (lambda f: (f / "config.json").write_text("{"), r"config\.json cannot be read"),
        (lambda f: (f / "config.json").write_text("[]"), "holds a JSON list, not an object"),
        (lambda f: (f / "config.json").unlink(), "weights has no config.json: give a folder"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_damaged_folders_are_refused_by_file(folder, damage, message):
    damage(folder)
    with pytest.raises(ValueError, match=message):
        load_pretrained(folder)


def test_the_pair_of_files_of_the_hub_is_a_tokenizer(real_data, tmp_path):
    for ours, theirs in (("encoder.json", "vocab.json"), ("vocab.bpe", "merges.txt")):
        shutil.copy(real_data / "gpt2-bpe" / ours, tmp_path / theirs)
    assert Tokenizer.load(tmp_path).encode("Hello world") == [15496, 995]


def load_from_hub(address: str, home: Path, *names: str) -> str:
    """What a process of its own prints: the hub's address is read when its library is imported."""
    code = (
        "import sys\n"
        "from gpt2.weights.open_model import open_model\n"
        "from gpt2.weights.pretrained import find_pretrained\n"
        "for name in sys.argv[1:]:\n"
        "    try:\n"
        "        print(find_pretrained(name).note)\n"
        "        run = open_model(name, device='cpu')\n"
        "        print(run.model.wte.weight.sum().item(), run.tokenizer.vocab_size)\n"
        "    except ValueError as error:\n"
        "        print('refused:', error)\n"
    )
    # In the default folder lies the folder gpt2, which is not meant.
    done = run_forked("-c", code, *names, HF_ENDPOINT=address, HF_HOME=str(home))
    assert done.returncode == 0, done.stderr
    return done.stdout


needs_hub = pytest.mark.skipif(
    importlib.util.find_spec("huggingface_hub") is None,
    reason="needs the library huggingface_hub: pip install -e '.[hub]'",
)
# `hf download openai-community/gpt2 --local-dir gpt2-weights`, as the advice has it.
HF_DOWNLOAD = """
import sys
from huggingface_hub.cli.hf import main

sys.argv = ["hf", "download", "openai-community/gpt2", "--local-dir", "gpt2-weights"]
main()
"""
NOT_WANTED = {"tf_model.h5": b"", "onnx/model.onnx": b"", "onnx/config.json": b""}


@needs_hub
def test_models_come_from_the_hub_and_then_need_no_network(model, folder, tmp_path):
    files = {path.name: path.read_bytes() for path in folder.iterdir()} | NOT_WANTED
    home = tmp_path / "home"
    with hub({"openai-community/gpt2": files}, "models") as (address, sent):
        first = load_from_hub(address, home, "gpt2", "openai-community/gpt5").splitlines()
        assert set(sent) == {"config.json", "tokenizer.json", "model.safetensors"}
    assert first[0] == "weights: gpt2 (openai-community/gpt2 at revision c0ffee00)"
    total, vocab_size = first[1].split()
    assert float(total) == pytest.approx(model.wte.weight.sum().item())
    assert vocab_size == "257"
    assert "refused: the Hugging Face hub has no public model openai-community/gpt5" in first[2]
    again = load_from_hub("http://127.0.0.1:9", home, "gpt2", "gpt2-large").splitlines()
    assert "at revision c0ffee00, fetched before (asking the hub failed: " in again[0]
    assert again[1] == first[1]
    assert "cannot be fetched from the Hugging Face hub (asking the hub failed: " in again[2]
    assert "hf download openai-community/gpt2-large --local-dir gpt2-large-weights" in again[2]
    with hub({"openai-community/gpt2": files}, "models") as (address, _):
        places = {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "third")}
        done = run_forked("-c", HF_DOWNLOAD, cwd=tmp_path, **places)
        assert done.returncode == 0, done.stderr
    assert_same(load_pretrained(tmp_path / "gpt2-weights"), model)


@needs_hub
def test_pickles_are_fetched_only_where_there_is_nothing_else(model, folder, tmp_path):
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    files = {path.name: path.read_bytes() for path in folder.iterdir()} | NOT_WANTED
    with hub({"someone/model": files}, "models") as (address, sent):
        answer = load_from_hub(address, tmp_path / "home", "someone/model").splitlines()
    assert float(answer[1].split()[0]) == pytest.approx(model.wte.weight.sum().item())
    assert set(sent) == {"config.json", "tokenizer.json", "pytorch_model.bin"}


def test_without_the_library_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ValueError, match=r"pip install -e '\.\[hub\]'.*give that folder"):
        find_pretrained("gpt2")


@pytest.mark.parametrize("name", ["gpt5", "./weights", "a/b/c", "https://example.org/gpt2"])
def test_what_is_neither_folder_nor_model_is_refused(name):
    with pytest.raises(ValueError, match=r"does not exist: give a folder .* or owner/name"):
        find_pretrained(name)
