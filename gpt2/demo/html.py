"""The pieces of the demo page as HTML, and its style sheet.

Everything that comes from a model or a user is escaped. Colours are Okabe and Ito's, told apart
with any colour vision; text, borders and backgrounds are the theme's, by day and by night.
"""

from collections.abc import Mapping, Sequence
from html import escape

from gpt2.demo.model import Chance
from gpt2.generate.sampling import Sampling

_COLOURS = {"Greedy": "#009E73", "Top-k": "#0072B2", "Nucleus": "#D55E00"}
_VISIBLE = {c: 0x2400 + c for c in range(32)} | {127: 0x2421}  # control pictures
_VISIBLE |= {ord(" "): 0x2423, ord("\n"): 0x21B5, ord("\t"): 0x21E5}


def header(title: str, facts: Mapping[str, str]) -> str:
    """A header with the name of a model, and facts by name."""
    items = "".join(
        f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in facts.items()
    )
    return f'<header class="facts"><h1>{escape(title)}</h1><dl>{items}</dl></header>'


def _settings(sampling: Sampling) -> str:
    """The settings of a sampling, to stand beside its name."""
    if sampling.temperature == 0:
        return "most probable token"
    limits = {"p": sampling.top_p, "k": sampling.top_k}
    parts = [f"{name} = {value:g}" for name, value in limits.items() if value is not None]
    return ", ".join([*parts, f"temperature {sampling.temperature:g}"])


def column(
    name: str, sampling: Sampling, prompt: str, text: str = "", *, live: bool = False
) -> str:
    """A strategy's continuation of a prompt, with a caret at its end while it is `live`."""
    return (
        f'<article class="story{" live" if live else ""}" style="--mark: {_COLOURS[name]}">'
        f"<h2>{escape(name)}<small>{escape(_settings(sampling))}</small></h2>"
        f'<div><p><span class="prompt">{escape(prompt)}</span>'
        f'<span class="made">{escape(text)}</span></p></div></article>'
    )


def remark(text: str) -> str:
    """A sentence where the chart would be."""
    return f'<section class="next"><p>{escape(text)}</p></section>'


def chart(chances: Sequence[Chance], vocab_size: int) -> str:
    """Tables with bars of each token's probability, in the model and under each sampling."""
    largest = max(max(c.model, *c.under.values()) for c in chances)
    half = (len(chances) + 1) // 2
    tables = "".join(_table(part, largest) for part in (chances[:half], chances[half:]) if part)
    share = sum(c.model for c in chances)
    return (
        '<section class="next"><h2>Next token after the prompt<small>'
        f"the {len(chances)} most probable of {vocab_size:,}, which hold {share:.0%} of the "
        f"model's probability</small></h2><div>{tables}</div></section>"
    )


def _table(chances: Sequence[Chance], largest: float) -> str:
    names = list(chances[0].under)
    heads = "".join(f'<th style="color: {_COLOURS[n]}">{escape(n)}</th>' for n in names)
    rows = []
    for chance in chances:
        values = [(chance.model, "var(--body-text-color-subdued)")]
        values += [(chance.under[n], _COLOURS[n]) for n in names]
        bars = "".join(
            f'<i style="width: {p / largest:.2%}; background: {colour}"></i>'
            for p, colour in values
        )
        cells = "".join(f"<td>{f'{p:.1%}' if p else '-'}</td>" for p, _ in values)
        rows.append(
            f'<tr><th scope="row"><code>{escape(visible(chance.token))}</code></th>'
            f'<td class="bars">{bars}</td>{cells}</tr>'
        )
    head = f"<thead><tr><th></th><th></th><th>model</th>{heads}</tr></thead>"
    return f"<table>{head}<tbody>{''.join(rows)}</tbody></table>"


def visible(token: str) -> str:
    """Replace white space and control characters of a token by visible signs."""
    return token.translate(_VISIBLE)


# A column scrolls from its end (column-reverse), so that the newest words are in sight. Its caret
# fades unless more text brings a new one: after Stop the last column may still be marked as live.
CSS = """
#facts .html-container { padding: 0; }
.gradio-container .fillable { max-width: 1400px !important; padding: 1.25rem 1.75rem !important; }
.facts { display: flex; flex-wrap: wrap; align-items: baseline; gap: .25rem 2.25rem; }
.facts h1 { font-size: 1.4rem; font-weight: 700; margin: 0; }
.facts dl { display: flex; flex-wrap: wrap; gap: .25rem 1.6rem; margin: 0; }
.facts dt, .story small, .next small { font-size: .75rem; color: var(--body-text-color-subdued); }
.facts dd { margin: 0; font-size: .875rem; }
.story h2, .next h2 { font-size: 1rem; font-weight: 700; margin: 0; }
.story small, .next small { font-weight: 400; margin-left: .6rem; }
.story h2 { color: var(--mark); border-bottom: 2px solid var(--mark); padding-bottom: .3rem; }
.story > div { height: 425px; overflow-y: auto; display: flex; flex-direction: column-reverse; }
.story p { margin: .6rem 0 auto; white-space: pre-wrap; overflow-wrap: anywhere;
  font-size: 1rem; line-height: 1.55; }
.story .prompt { color: var(--body-text-color-subdued); }
.story.live .made::after { content: "\\258d"; color: var(--mark); animation: fade 1s 2s forwards; }
@keyframes fade { to { opacity: 0; } }
.next > div { display: flex; flex-wrap: wrap; gap: 0 2.5rem; }
.next table { flex: 1 1 340px; border-collapse: collapse; font-size: .8125rem; }
.next th, .next td { padding: .12rem 0 .12rem .75rem; text-align: right; font-weight: 400;
  font-variant-numeric: tabular-nums; white-space: nowrap; }
.next th[scope=row] { text-align: left; padding-left: 0; width: 7em; }
.next code { display: inline-block; max-width: 9em; overflow: hidden; text-overflow: ellipsis;
  vertical-align: bottom; font-family: var(--font-mono); }
.next .bars { width: 42%; }
.next .bars i { display: block; height: 4px; margin: 1px 0; border-radius: 1px; }
"""
