"""The report as one dict that is plain JSON: a title, and sections of blocks (blocks.py)."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpt2.report.blocks import Block, bullets, figure, formula, pairs, paragraph, references, table
from gpt2.report.comparisons import bench_blocks, runs_blocks, sizes_blocks
from gpt2.report.decoding import decoding_blocks
from gpt2.report.figures import start_above_frame
from gpt2.report.findings import discuss, train_loss
from gpt2.report.formulas import model_formulas, training_formulas
from gpt2.report.references import DATA_SETS, cited
from gpt2.report.result_files import Bench, Decoding, Sizes
from gpt2.report.sources import RunFacts
from gpt2.report.text import Spans, duration, in_words, rich, scientific

Section = dict[str, Any]
_HELD_OUT = {"valid": "validation", "test": "test"}


def gather(
    runs: Sequence[RunFacts],
    *,
    decoding: Decoding | None = None,
    sizes: Sizes | None = None,
    bench: Bench | None = None,
    title: str | None = None,
    author: str | None = None,
) -> dict[str, Any]:
    """The content of a report.

    Args:
        runs: the run that is described, then those that it is compared with.
        decoding: decoding strategies compared; None analyses the run's own samples.
        sizes: model sizes compared.
        bench: a benchmark's results, for the section on efficiency.
        title: None is made of the run's size and data.
        author: named under the title.
    """
    run = runs[0]
    sections = [
        _section("Model", _model(run)),
        _section("Data and preprocessing", _data(run)),
        _section("Training", _training(run)),
        _section("Results", _results(run)),
        _section("Samples and decoding", decoding_blocks(run, decoding)),
    ]
    if len(runs) > 1:
        sections.append(_section("Comparison of runs", runs_blocks(runs)))
    if sizes is not None:
        sections.append(_section("Comparison of sizes", sizes_blocks(sizes)))
    if bench is not None:
        sections.append(_section("Efficiency", bench_blocks(bench)))
    lists = discuss(run, decoding, sizes, bench).items()
    discussion = [bullets(lead, items) for lead, items in lists if items]
    sections.append(_section("Discussion", discussion))
    sections.append(_section("References", [references(cited(sections))], numbered=False))
    title = title or f"GPT-2 on {run.data_name}: {in_words(run.parameters)} parameters"
    return {
        "title": " ".join(title.split()),
        "author": " ".join(author.split()) if author else None,
        "date": f"{run.finished.day} {run.finished:%B %Y}",
        "timestamp": int(run.finished.timestamp()),
        "abstract": _abstract(run),
        "sections": sections,
    }


def _section(title: str, blocks: list[Block], *, numbered: bool = True) -> Section:
    return {"title": title, "numbered": numbered, "blocks": blocks}


def _abstract(run: RunFacts) -> Spans:
    test = run.test
    return rich(
        "A decoder-only Transformer of {parameters:,} parameters was trained from random weights "
        "on {tokens} tokens of {data} in {time}. On unseen text it reaches a loss of {loss:.3f} "
        "nats per token, that is a perplexity of {ppl:.2f}, and {bpb:.3f} bits per byte. Every "
        "figure here was read from the files of the run.",
        parameters=run.parameters,
        tokens=in_words(run.tokens),
        data=run.data_name,
        time=duration(run.seconds),
        loss=test.loss,
        ppl=test.perplexity,
        bpb=test.bits_per_byte,
    )


def _model(run: RunFacts) -> list[Block]:
    config = run.model
    tables = config.vocab_size * config.n_embd * (1 if config.tie else 2)
    rows = [
        (rich("layers $L$"), f"{config.n_layer:,}"),
        (rich("heads $H$"), f"{config.n_head:,}"),
        (rich("width $C$"), f"{config.n_embd:,}"),
        (rich("head width $D$"), f"{config.head_dim:,}"),
        (rich("MLP width $F$"), f"{config.mlp_width:,}"),
        (rich("vocabulary $V$"), f"{config.vocab_size:,}"),
        (rich("context $T$"), f"{config.block_size:,}"),
        (rich("attention window"), f"{config.window:,}" if config.window else "whole context"),
        (rich("norm"), f"{config.norm_position}-{config.norm}"),
        (rich("MLP"), config.mlp),
        (rich("positions"), config.positions),
        (rich("output head"), "tied" if config.tie else "its own"),
        (rich("biases"), "yes" if config.bias else "no"),
        (rich("dropout"), f"{config.dropout:g}"),
        (rich("parameters"), f"{run.parameters:,}"),
    ]
    intro = rich(
        "The model is a decoder-only Transformer after GPT-2 (Radford et al. 2019; Vaswani et al. "
        "2017), written out from linear layers: it maps the tokens so far to a distribution over "
        "the next one. Weights start from a normal distribution of deviation 0.02, those that end "
        "a residual branch smaller by $1 slash sqrt(2 L)|1/\\sqrt{2L}${biases}.",
        biases="; biases start at zero" if config.bias else "",
    )
    caption = rich(
        "Configuration. {share:.0%} of the parameters are the {tables}.",
        share=tables / run.parameters,
        tables="token embedding" if config.tie else "token embedding and the head",
    )
    formulas = [formula(f) for f in model_formulas(config)]
    return [paragraph(intro), *formulas, pairs(caption, rows)]


def _data(run: RunFacts) -> list[Block]:
    config = run.train
    reference = next((r for name, r in DATA_SETS.items() if name in run.data_name.lower()), None)
    if run.data is None:
        where = rich(
            "The text is {name}; the run folder does not record the sizes of its splits, and they "
            "were not found in the data cache.",
            name=run.data_name,
        )
    else:
        taken, _, how = run.data.held_out.partition(": ")
        own = [name for split, name in _HELD_OUT.items() if split not in taken]
        others = [name for split, name in _HELD_OUT.items() if split in taken]
        where = rich(
            "The text is {name}{cite}. {own}{others}",
            name=run.data_name,
            cite=f" ({reference})" if reference else "",
            own=f"Its {_splits(own)} the source's own. " if own else "",
            others=f"The {_splits(others)} held out of the training text once and for all: {how}."
            if others
            else "",
        )
    blocks = [paragraph(where)]
    trained = "learned from the training split"
    if config.tokenizer is not None:
        trained = f"taken over from {Path(config.tokenizer).name}"
    blocks.append(
        paragraph(
            rich(
                "Byte-level byte-pair encoding (Sennrich et al. 2016; Radford et al. 2019) with a "
                "vocabulary of {vocab:,} tokens, {trained}. It starts from the 256 bytes, so that "
                "every text can be encoded and is given back byte for byte.",
                vocab=run.model.vocab_size,
                trained=trained,
            ),
            lead="Tokenizer",
        )
    )
    blocks.append(
        paragraph(
            rich(
                "Each split is one stream of tokens in which `<|endoftext|>` ends every document. "
                "An epoch cuts the training stream into windows of $T$~=~{T:,} tokens, in an order "
                "drawn anew for each epoch, the cuts shifted from epoch to epoch. The input is "
                "$i_t, dots, i_(t+T-1)|i_t, \\dots, i_{t+T-1}$ and the target "
                "$i_(t+1), dots, i_(t+T)|i_{t+1}, \\dots, i_{t+T}$: all $T$ positions learn at "
                "once.",
                T=config.seq_len,
            ),
            lead="Windows",
        )
    )
    if run.data is not None:
        blocks.append(_split_table(run))
    return blocks


def _split_table(run: RunFacts) -> Block:
    assert run.data is not None
    names = {"train": "training", "valid": "validation", "test": "test"}
    rows = [
        [
            names[split],
            f"{s.documents:,}",
            f"{s.tokens:,}",
            f"{s.bytes:,}",
            f"{s.bytes / s.tokens:.2f}",
        ]
        for split, s in run.data.splits.items()
    ]
    return table(
        rich("The splits of {name}.", name=run.data_name),
        ["split", "documents", "tokens", "bytes", "bytes per token"],
        rows,
    )


def _training(run: RunFacts) -> list[Block]:
    config = run.train
    machine = run.machine
    assert config.lr is not None
    rows: list[tuple[Spans, str]] = [
        (rich("windows per micro-batch"), f"{config.batch_size:,}"),
        (rich("micro-batches per step"), f"{config.grad_accum:,}"),
        (rich("tokens per step"), f"{run.tokens_per_step:,}"),
        (rich("steps"), f"{run.steps:,}"),
        (rich("tokens seen"), f"{run.tokens:,}"),
        (rich("optimizer"), {"adamw": "AdamW", "muon": "Muon, AdamW"}[config.optimizer or "adamw"]),
        (rich("peak learning rate"), f"{config.lr:g}"),
        (rich("weight decay"), f"{config.weight_decay:g}"),
        (rich("gradient clipped at"), f"{config.clip:g}" if config.clip else "never"),
        (rich("device"), str(machine.get("device", "not recorded"))),
        (rich("compute type"), str(machine.get("dtype", "not recorded"))),
        (rich("attention"), run.model.attn),
        (rich("time in steps"), duration(run.seconds)),
        (rich("tokens per second"), f"{run.tokens_per_s:,.0f}"),
        (rich("seed"), f"{config.seed}"),
    ]
    if "torch" in machine:
        rows.append((rich("PyTorch"), str(machine["torch"])))
    if "compile" in machine:
        rows.append((rich("compiled"), "yes" if machine["compile"] else "no"))
    if run.data is not None:
        epochs = run.tokens / run.data.splits["train"].tokens
        rows.insert(5, (rich("epochs"), f"{epochs:.2f}"))
    text = rich(
        "A step averages the gradient of {accum} micro-batch{es} of {batch} windows, {tokens:,} "
        "tokens in all, weighted by tokens, so that it is exactly that of the one large batch. "
        "The whole run took {flops} floating point operations of the model (forward and backward, "
        "the visible part of attention, nothing recomputed).",
        accum=config.grad_accum,
        es="" if config.grad_accum == 1 else "es",
        batch=config.batch_size,
        tokens=run.tokens_per_step,
        flops=scientific(run.flops),
    )
    formulas = [formula(f) for f in training_formulas(config, run.steps)]
    return [paragraph(text), *formulas, pairs(rich("Training set-up."), rows)]


def _results(run: RunFacts) -> list[Block]:
    test = run.test
    scored = min(run.train.eval_tokens, run.data.splits["valid"].tokens) if run.data else None
    start = start_above_frame(run)
    curves = figure(
        "loss.svg",
        rich(
            "Left: cross-entropy over the run; training loss as the mean of the {log} steps "
            "before each point{start}, validation loss on the same tokens each time{scored}, the "
            "test loss of the best weights as a line. Right: the learning rate.",
            log=run.train.log_every,
            start=f" (it starts at {start:.2f}, above the frame)" if start else "",
            scored=f" (about {scored:,})" if scored else "",
        ),
        alt="Training and validation loss over the tokens seen, and the learning rate",
    )
    rows = [
        ["training, last tenth of the steps", *_loss_cells(train_loss(run), None)],
        [f"validation, best (step {run.step:,})", *_loss_cells(run.val_loss, None)],
        ["test", *_loss_cells(test.loss, test.bits_per_byte)],
    ]
    losses = table(
        rich("Loss and perplexity. Bits per byte need a whole split: test only."),
        ["split", "loss (nats per token)", "perplexity", "bits per byte"],
        rows,
    )
    protocol = rich(
        "The weights of step {step:,}, with the lowest validation loss, were scored once on the "
        "test split: {tokens:,} tokens ({bytes:,} bytes), each scored once, within windows of "
        "{context:,} tokens one after another (stride {stride:,}); `<|endoftext|>` stands before "
        "the first token, counts as a token and adds no bytes. Perplexity can be compared only "
        "between models with one tokenizer; bits per byte with any model on the same text.",
        step=run.step,
        tokens=test.tokens,
        bytes=test.bytes,
        context=test.context,
        stride=test.stride,
    )
    return [losses, paragraph(protocol, lead="Protocol"), curves]


def _splits(names: list[str]) -> str:
    return f"{names[0]} split is" if len(names) == 1 else f"{' and '.join(names)} splits are"


def _loss_cells(loss: float, bits_per_byte: float | None) -> list[str]:
    bits = "" if bits_per_byte is None else f"{bits_per_byte:.4f}"
    return [f"{loss:.4f}", f"{math.exp(loss):,.2f}", bits]
