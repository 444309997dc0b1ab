"""A child process of test_transformers: a GPT-2 of transformers with and without our kernels.

    python patched_gpt2.py REPOSITORY OUT

It writes OUT/tensors.safetensors, named case/mode/model/quantity, and OUT/facts.json.
"""

import copy
import json
import os
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"

import torch
import torch.nn.functional as F
from transformers import GPT2Config, GPT2ForTokenClassification, GPT2LMHeadModel, StaticCache
from transformers.utils import is_kernels_available

# After transformers: it takes a package called `kernels` that it finds.
sys.path.insert(0, sys.argv[1])

from safetensors.torch import save_file

from kernels.integrations.transformers import patch_transformers_gpt2, unpatch_transformers_gpt2
from tests.kernels.work_counts import count_work

OUT = Path(sys.argv[2])
PARTS = ("attention", "norms", "mlp", "loss")
OPTIONS = {
    "n_layer": 2, "n_head": 3, "n_embd": 48, "vocab_size": 131, "n_positions": 48,
    "layer_norm_epsilon": 1e-3, "attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0,
    "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip
tensors: dict[str, torch.Tensor] = {}
facts: dict[str, Any] = {}


def build(**options: Any) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(**OPTIONS | options))
    with torch.no_grad():  # biases and norms that matter
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return model


def plainly(model: GPT2LMHeadModel, ids: torch.Tensor, labels: torch.Tensor) -> dict[str, Any]:
    """Logits and loss with no code of transformers for the loss, which has float32 in it."""
    logits = model(ids).logits
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    return {"logits": logits, "loss": loss}


def record(name: str, model: GPT2LMHeadModel, outputs: Any) -> None:
    """The outputs, and the gradient of each parameter."""
    for part in ("loss", "logits"):
        if outputs[part] is not None:
            tensors[f"{name}/{part}"] = outputs[part].detach().clone()
    model.zero_grad()
    outputs["loss"].backward()
    for parameter, value in model.named_parameters():
        tensors[f"{name}/d{parameter}"] = value.grad.clone()


def refusal(call: Callable[[Any], object], argument: Any) -> str:
    try:
        call(argument)
    except ValueError as error:
        return str(error)
    return ""


ids = torch.randint(1, 131, (2, 33), generator=torch.Generator().manual_seed(1))
labels = ids.clone()
labels[0, :5] = -100
model = build()
original = {name: type(module) for name, module in model.named_modules()}

for mode in ("train", "eval"):
    model.train(mode == "train")
    outputs = model(ids, labels=labels)
    record(f"{mode}/plain", model, {"loss": outputs.loss, "logits": outputs.logits})
    exact = copy.deepcopy(model).double()
    record(f"{mode}/exact", exact, plainly(exact, ids, labels))
    for parts in (PARTS, *((part,) for part in PARTS if mode == "train")):
        case = "+".join(parts)
        patch_transformers_gpt2(model, **{part: part in parts for part in PARTS})
        with count_work() as work:
            outputs = model(ids, labels=labels)
            record(f"{mode}/{case}", model, {"loss": outputs.loss, "logits": outputs.logits})
        facts[f"{mode}/{case}/launched"] = sorted({launch.kernel for launch in work.launches})
        unpatch_transformers_gpt2(model)

model.train()
with torch.autocast("cpu", dtype=torch.bfloat16):
    outputs = model(ids, labels=labels)
    record("autocast/plain", model, {"loss": outputs.loss, "logits": None})
    patch_transformers_gpt2(model)
    outputs = model(ids, labels=labels)
    record("autocast/patched", model, {"loss": outputs.loss, "logits": None})
    unpatch_transformers_gpt2(model)

accumulated = {"input_ids": ids, "labels": labels, "num_items_in_batch": torch.tensor(90)}
for name in ("plain", "patched"):
    if name == "patched":
        patch_transformers_gpt2(model)
    tensors[f"accumulated/{name}"] = model(**accumulated).loss.detach()
    tensors[f"tuple/{name}"] = model(ids, labels=labels, return_dict=False)[0].detach()
model.eval()
outputs = model(ids, labels=labels, skip_logits=True)
facts["skip_logits in evaluation"] = outputs.logits is None
tensors["skipped/patched"] = outputs.loss.detach()
tensors["skipped/plain"] = model(ids, labels=labels).loss.detach()
outputs = model(ids, output_hidden_states=True, use_cache=False)
facts["hidden states"] = [list(hidden.shape) for hidden in outputs.hidden_states]

# Prompts of one length, then one of them padded on the left.
prompt = ids[:, :6]
padded, mask = prompt.clone(), torch.ones_like(prompt)
padded[0, :2], mask[0, :2] = 0, 0
unpatch_transformers_gpt2(model)
for name in ("plain", "patched"):
    if name == "patched":
        patch_transformers_gpt2(model)
    for case, start in (("whole", prompt), ("padded", padded)):
        seen = torch.ones_like(prompt) if case == "whole" else mask
        with count_work() as work:
            tensors[f"{case}/{name}"] = model.generate(
                start, attention_mask=seen, max_new_tokens=12, do_sample=False, pad_token_id=0
            )
        launches = [launch.kernel for launch in work.launches]
        facts[f"{case}/{name}/attention"] = launches.count("attention_fwd_kernel")

# A prompt in two parts, and one in a static cache; the middle of a text that is masked there.
exact = copy.deepcopy(model)
unpatch_transformers_gpt2(exact)
plain, exact = copy.deepcopy(exact), exact.double()
hiding = torch.ones_like(ids)
hiding[0, 7] = 0
for case in ("parts", "static", "hidden", "trained"):
    seen = hiding if case == "hidden" else None
    with torch.set_grad_enabled(case == "trained"):
        tensors[f"{case}/exact"] = exact(ids, attention_mask=seen).logits[:, 20:].detach()
        for name, kind in (("plain", plain), ("patched", model)):
            cache = StaticCache(model.config, max_cache_len=48) if case == "static" else None
            parts = [ids] if case == "static" else [ids[:, :20], ids[:, 20:]]
            with count_work() as work:
                for part in parts:
                    visible = None if seen is None else seen[:, : 20 if part is parts[0] else 33]
                    outputs = kind(part, attention_mask=visible, past_key_values=cache)
                    cache = outputs.past_key_values
            tensors[f"{case}/{name}"] = outputs.logits[:, -13:].detach()
            launches = [launch.kernel for launch in work.launches]
            facts[f"{case}/{name}/attention"] = launches.count("attention_fwd_kernel")

model.train()
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    tensors["masked/patched"] = model(padded, attention_mask=mask, labels=padded).loss.detach()
facts["warning"] = str(caught[0].message) if caught else ""
unpatch_transformers_gpt2(model)
tensors["masked/plain"] = model(padded, attention_mask=mask, labels=padded).loss.detach()

facts["restored"] = original == {name: type(m) for name, m in model.named_modules()}
facts["attention restored"] = model.config._attn_implementation
tensors["restored/patched"] = model(ids).logits.detach()
tensors["restored/plain"] = build()(ids).logits.detach()
if hasattr(is_kernels_available, "cache_clear"):  # transformers 5
    is_kernels_available.cache_clear()
facts["transformers takes our package for PyPI's"] = is_kernels_available()


def replaced(name: str, module: torch.nn.Module) -> GPT2LMHeadModel:
    changed = build()
    owner, _, last = name.rpartition(".")
    setattr(changed.get_submodule(owner), last, module)
    return changed


dropping = build(attn_pdrop=0.5)
patch_transformers_gpt2(dropping)
for mode in ("train", "eval"):
    dropping.train(mode == "train")
    tensors[f"dropout/{mode}"] = torch.stack([dropping(ids).logits.detach() for _ in range(2)])

patched = build()
patch_transformers_gpt2(patched)
adapted = build()
patch_transformers_gpt2(adapted)
adapted.transformer.h[1].mlp.c_fc = torch.nn.Linear(48, 192)
refused = {
    "another model": GPT2ForTokenClassification(GPT2Config(**OPTIONS)),
    "twice": patched,
    "relu": build(activation_function="relu"),
    "scale": build(scale_attn_by_inverse_layer_idx=True),
    "norm": replaced("transformer.h.1.ln_2", torch.nn.RMSNorm(48)),
    "adapter": replaced("transformer.h.1.mlp.c_fc", torch.nn.Linear(48, 192)),
    "head": replaced("lm_head", torch.nn.Linear(48, 131)),
}
facts["refused"] = {name: refusal(patch_transformers_gpt2, x) for name, x in refused.items()}
facts["refused"]["adapter afterwards"] = refusal(adapted, ids)
facts["refused"]["weights"] = refusal(partial(patched, output_attentions=True), ids)
unpatch_transformers_gpt2(patched)
patched.set_attn_implementation("eager")
facts["weights as the message says"] = list(
    patched(ids, output_attentions=True).attentions[0].shape
)
facts["untouched when refused"] = (
    type(refused["head"].transformer.ln_f) is torch.nn.LayerNorm
    and refused["head"].config._attn_implementation == model.config._attn_implementation
)

tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
save_file(tensors, OUT / "tensors.safetensors")
(OUT / "facts.json").write_text(json.dumps(facts))
