"""Put our kernels into a GPT-2 of the library transformers.

    import transformers  # first, see below
    from kernels.integrations.transformers import patch_transformers_gpt2

    model = transformers.AutoModelForCausalLM.from_pretrained("gpt2").to("cuda")
    patch_transformers_gpt2(model)

Parameters, `generate`, `Trainer` and `save_pretrained` stay as they are. These parts change; the
library's own code still runs where it is said:

    attention   self-attention of a call's tokens among themselves, and (without gradients) of
                several tokens to a cache that was filled before: training, and prompts in
                `generate`, whole or in parts. With padding (or another mask), and for a single new
                token, it is PyTorch's SDPA, as in an unpatched model. A call with
                `output_attentions=True` is a ValueError: the weights never exist.
    norms       each LayerNorm.
    mlp         GELU together with the bias of `c_fc`, whose own forward is not called.
    loss        in training with labels, from the hidden states: the logits never exist, and
                `outputs.logits` is None. In evaluation, and without labels, nothing changes. The
                argument `skip_logits` of a call overrides this, either way. Where every label is
                ignored the loss is 0, not NaN.

Tensors must be on a GPU (or in Triton's interpreter), in float32, float16 or bfloat16. With mlp and
loss, weights are read directly, not through the layer that owns them: its hooks do not run, and
sharding by layer (ZeRO-3) does not work. Under `torch.compile` transformers 5 makes a mask when
it is given an `attention_mask`, even one that hides nothing, or `use_cache=False`: leave both out
(transformers 4 makes one always). Masked training warns.

Order of imports: transformers imports a PyPI package that is called `kernels`, like ours, if it is
installed. Therefore import transformers first, put this repository on `sys.path` second, and
uninstall that package (`pip uninstall kernels`; transformers works without it): where it is in the
way, Python says that there is no module named `kernels.integrations`.

Nothing here imports transformers: it works on the model that it is given, of transformers 5, or 4
from 4.57 on.
"""

import functools
import inspect
import sys
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels.attention import attention as causal_attention
from kernels.gelu import gelu_tanh
from kernels.layer_norm import layer_norm
from kernels.linear_cross_entropy import linear_cross_entropy

_IMPLEMENTATION = "gpt2_triton"  # our name among transformers' attention functions
_ALL_BEFORE = "gpt2_triton_all_before"  # the attribute of a mask that our kernel does without
_GELUS = ("NewGELUActivation", "GELUTanh")
# Options of GPT-2's attention that change what it computes, with the value that ours computes.
_ATTENTION_OPTIONS = {
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "reorder_and_upcast_attn": False,
    "add_cross_attention": False,
    "is_causal": True,
}
# Arguments of an attention function that the kernels do not take.
_ATTENTION_EXTRAS = ("head_mask", "position_bias", "cache", "softcap")
_LOSS_ARGUMENTS = ("labels", "shift_labels", "num_items_in_batch", "ignore_index")


def patch_transformers_gpt2(
    model: nn.Module,
    *,
    attention: bool = True,
    norms: bool = True,
    mlp: bool = True,
    loss: bool = True,
) -> None:
    """Put our kernels into a `GPT2LMHeadModel` of transformers, in place.

    The model computes the same function; the docstring of this module lists what changes.
    `unpatch_transformers_gpt2` undoes it.

    Args:
        model: as transformers makes it, before adapters (PEFT) or quantisation.
        attention: with `kernels.attention`; it replaces the model's `attn_implementation`.
        norms: with `kernels.layer_norm`.
        mlp: with `kernels.gelu`.
        loss: with `kernels.linear_cross_entropy`.

    Raises:
        ValueError: another kind of model, a module or an option that the kernels do not compute, or
            a model that is patched already. Nothing is changed then.
    """
    subject: Any = model
    kind: Any = _language_model_class(model)
    if _is_patched(model):
        raise ValueError("the model is patched already: unpatch_transformers_gpt2(model) first")
    classes: list[tuple[nn.Module, type[nn.Module]]] = []
    for number, block in enumerate(subject.transformer.h):
        where = f"transformer.h.{number}"
        if norms:
            for name in ("ln_1", "ln_2"):
                norm = _checked_norm(getattr(block, name), f"{where}.{name}")
                classes.append((norm, _BlockLayerNorm))
        if mlp:
            _check_mlp(block.mlp, f"{where}.mlp")
            classes.append((block.mlp, _fused_mlp(block.mlp.__class__)))
    if norms:
        norm = _checked_norm(subject.transformer.ln_f, "transformer.ln_f")
        classes.append((norm, _LayerNorm))
    if loss:
        _check_loss(subject)
        classes.append((model, _fused_loss(subject.__class__, kind)))
    if attention:
        _check_attention(subject.config)
        classes.append((subject.transformer, _weightless(subject.transformer.__class__)))
        _register_attention(kind)
        before = subject.config._attn_implementation
        subject.set_attn_implementation(_IMPLEMENTATION)
        if subject.config._attn_implementation != _IMPLEMENTATION:
            raise ValueError("attention: transformers cannot change it for this class of model")
        subject.attention_before_patch = before
    for module, new in classes:
        module.__class__ = new


def unpatch_transformers_gpt2(model: nn.Module) -> None:
    """Restore the own code of a patched model; leave any other model unchanged."""
    subject: Any = model
    for module in model.modules():
        module.__class__ = getattr(type(module), "class_before_patch", type(module))
    if hasattr(model, "attention_before_patch"):
        subject.set_attn_implementation(subject.attention_before_patch)
        del subject.attention_before_patch


def _is_patched(model: nn.Module) -> bool:
    return hasattr(model, "attention_before_patch") or any(
        hasattr(type(module), "class_before_patch") for module in model.modules()
    )


class _LayerNorm(nn.LayerNorm):
    class_before_patch = nn.LayerNorm

    def forward(self, x: Tensor) -> Tensor:
        return layer_norm(x, self.weight, self.bias, self.eps)


class _BlockLayerNorm(_LayerNorm):
    """A norm read by linear layers only: under autocast its output has their dtype."""

    def forward(self, x: Tensor) -> Tensor:
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        return layer_norm(x, self.weight, self.bias, self.eps, dtype=dtype)


def _subclass(base: type[nn.Module], forward: Callable[..., Any]) -> type[nn.Module]:
    """Subclass `base` with another forward, under its name, by which transformers looks it up."""
    content = {
        "__module__": base.__module__,
        "__qualname__": base.__qualname__,
        "class_before_patch": base,
        "forward": functools.wraps(base.forward)(forward),
    }
    return type(base.__name__, (base,), content)


@functools.cache
def _fused_mlp(base: Any) -> type[nn.Module]:
    def forward(self: Any, hidden_states: Tensor) -> Tensor:
        _check_conv1d(self.c_fc, "mlp.c_fc")  # an adapter may have come since
        x = torch.mm(hidden_states.flatten(0, -2), self.c_fc.weight)
        x = gelu_tanh(x, self.c_fc.bias).unflatten(0, hidden_states.shape[:-1])
        return self.dropout(self.c_proj(x))

    return _subclass(base, forward)


@functools.cache
def _weightless(base: Any) -> type[nn.Module]:
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("output_attentions"):
            raise ValueError(
                "output_attentions: our attention never holds its weights; "
                "unpatch_transformers_gpt2(model), then model.set_attn_implementation('eager')"
            )
        return base.forward(self, *args, **kwargs)

    return _subclass(base, forward)


@functools.cache
def _fused_loss(base: Any, kind: Any) -> type[nn.Module]:
    names = tuple(inspect.signature(base.forward).parameters)[1:]
    output_class = sys.modules[kind.__module__].CausalLMOutputWithCrossAttentions

    def forward(self: Any, *args: Any, skip_logits: bool | None = None, **kwargs: Any) -> Any:
        kwargs |= zip(names, args, strict=False)
        keep = kwargs.pop("logits_to_keep", 0)
        if skip_logits is None:
            skip_logits = self.training
        if kwargs.get("labels") is None or not skip_logits or not isinstance(keep, int) or keep:
            return base.forward(self, **kwargs, logits_to_keep=keep)
        _check_head(self.lm_head)
        given = {name: kwargs.pop(name) for name in _LOSS_ARGUMENTS if name in kwargs}
        return_dict = kwargs.pop("return_dict", None)
        outputs = self.transformer(**kwargs, return_dict=True)
        result = output_class(
            loss=_loss(outputs.last_hidden_state, self.lm_head.weight, **given),
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            cross_attentions=outputs.cross_attentions,
        )
        if return_dict is None:
            return_dict = self.config.return_dict
        return result if return_dict else result.to_tuple()

    return _subclass(base, forward)


def _loss(
    hidden: Tensor, weight: Tensor, labels: Tensor, shift_labels: Tensor | None = None,
    num_items_in_batch: Tensor | int | None = None, ignore_index: int = -100,
) -> Tensor:  # fmt: skip
    """Compute the causal language model loss; the arguments are those of transformers' function."""
    if shift_labels is None:
        shift_labels = F.pad(labels, (0, 1), value=ignore_index)[..., 1:]
    targets = shift_labels.to(hidden.device).flatten()
    loss = linear_cross_entropy(hidden.flatten(0, -2), weight, targets, ignore_index=ignore_index)
    if num_items_in_batch is None:
        return loss
    # The mean over a batch that is accumulated in parts: this part's sum over the items of all.
    if isinstance(num_items_in_batch, Tensor):
        num_items_in_batch = num_items_in_batch.to(hidden.device)
    return loss * ((targets != ignore_index).sum() / num_items_in_batch)


def _register_attention(kind: type[nn.Module]) -> None:
    """Register our attention with the attention interface of transformers."""
    functions = sys.modules[kind.__module__].ALL_ATTENTION_FUNCTIONS
    masks = sys.modules["transformers.masking_utils"].ALL_MASK_ATTENTION_FUNCTIONS
    sdpa, sdpa_mask = functions["sdpa"], masks["sdpa"]

    def attend(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor,
        attention_mask: Tensor | None, *, scaling: float | None = None, dropout: float = 0.0,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        """query (B, H, T, D), key and value (B, H, S, D) -> (B, T, H, D), and no weights."""
        T, S = query.shape[2], key.shape[2]
        if attention_mask is None:
            # A static cache has room for more than the tokens that are the first in it.
            causal, S = T > 1 or T == S, T
        else:
            causal = hasattr(attention_mask, _ALL_BEFORE) and not query.requires_grad
        if causal and all(kwargs.get(name) is None for name in _ATTENTION_EXTRAS):
            q, k, v = (x.transpose(1, 2) for x in (query, key[:, :, :S], value[:, :, :S]))
            return causal_attention(q, k, v, scale=scaling, dropout_p=dropout), None
        if module.training:
            warnings.warn(
                "attention with a mask or a filled cache is computed by PyTorch's SDPA, not by our "
                "kernels: train on sequences without padding",
                stacklevel=2,
            )
        return sdpa(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs
        )

    def mask(*args: Any, **kwargs: Any) -> Tensor | None:
        """Mark the mask by which the last positions see themselves and all before them."""
        made = sdpa_mask(*args, **kwargs)
        start, padding = kwargs.get("q_offset"), kwargs.get("attention_mask")
        if (
            made is not None
            and isinstance(start, int)
            and start + kwargs["q_length"] == kwargs["kv_length"]
            and kwargs["kv_offset"] == 0
            and kwargs["allow_is_causal_skip"]  # no pattern of documents, images or the caller's
            and not torch.compiler.is_compiling()
            and (padding is None or padding.all())
        ):
            setattr(made, _ALL_BEFORE, True)
        return made

    functions.register(_IMPLEMENTATION, attend)
    masks.register(_IMPLEMENTATION, mask)


def _language_model_class(model: nn.Module) -> type[nn.Module]:
    for kind in type(model).__mro__:
        if kind.__name__ == "GPT2LMHeadModel" and kind.__module__.startswith("transformers."):
            return kind
    raise ValueError(
        f"only a GPT2LMHeadModel of transformers can be patched, got a {type(model).__name__}"
    )


def _check_attention(config: Any) -> None:
    for name, ours in _ATTENTION_OPTIONS.items():
        if getattr(config, name, ours) != ours:
            raise ValueError(
                f"attention: the kernels do not compute {name}={getattr(config, name)}; patch with "
                "attention=False"
            )
    if "transformers.masking_utils" not in sys.modules:
        raise ValueError("attention: this transformers is too old, it has no attention interface")


def _checked_norm(module: nn.Module, where: str) -> nn.Module:
    if type(module) is not nn.LayerNorm or not module.elementwise_affine:
        raise ValueError(f"{where} is a {type(module).__name__}, not an nn.LayerNorm with a weight")
    return module


def _check_mlp(module: Any, where: str) -> None:
    _check_conv1d(module.c_fc, f"{where}.c_fc")
    if type(module.act).__name__ not in _GELUS:
        raise ValueError(
            f"{where}.act is {type(module.act).__name__}, and the kernel computes GELU in its tanh "
            "form (gelu_new); patch with mlp=False"
        )


def _check_conv1d(module: nn.Module, where: str) -> None:
    if type(module).__name__ != "Conv1D":
        raise ValueError(
            f"{where} is a {type(module).__name__}, not transformers' Conv1D, as adapters and "
            "quantisation make it; patch with mlp=False"
        )


def _check_loss(model: Any) -> None:
    name = getattr(model.loss_function, "__name__", type(model.loss_function).__name__)
    if name != "ForCausalLMLoss":
        raise ValueError(
            f"the model's loss is {name}, not that of a language model; patch with loss=False"
        )
    _check_head(model.lm_head)


def _check_head(module: nn.Module) -> None:
    if type(module) is not nn.Linear or module.bias is not None:
        raise ValueError(
            f"lm_head is a {type(module).__name__}, not an nn.Linear without bias; patch with "
            "loss=False"
        )
