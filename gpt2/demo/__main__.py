"""A local web page for a trained model: strategies side by side, and the next token's chances.

    python -m gpt2.demo runs/python-docs-demo

The page is served on 127.0.0.1 only, and neither it nor the server asks anything of the network.
gpt2/demo/model.py computes what the page shows, gpt2/demo/html.py makes HTML of it.
"""

import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tyro.conf import Positional

from gpt2.demo.html import CSS, chart, column, header, remark
from gpt2.demo.model import facts, next_tokens, side_by_side, strategies
from gpt2.runs.run import Run
from gpt2.weights.open_model import open_model

if TYPE_CHECKING:
    from gradio import Blocks

HOST = "127.0.0.1"


class Answers:
    """The functions behind the page's button and sliders."""

    def __init__(self, run: Run, gr: Any) -> None:
        self.run, self.gr = run, gr

    def generate(
        self, prompt: str, temperature: float, top_k: float, top_p: float, length: float, seed: Any
    ) -> Iterator[list[str]]:
        """Continue the prompt by every strategy; yields the columns as HTML while they grow."""
        if seed is None:
            raise self.gr.Error("Give a seed, such as 1337.", print_exception=False)
        samplings = strategies(temperature, top_k, top_p)
        options = {"max_tokens": int(length), "seed": int(seed)}
        try:
            for texts in side_by_side(self.run, prompt, samplings, **options):
                yield [column(n, s, prompt, texts[n], live=True) for n, s in samplings.items()]
        except ValueError as error:
            raise self.gr.Error(str(error), print_exception=False) from error
        yield [column(n, s, prompt, texts[n]) for n, s in samplings.items()]

    def chances(self, prompt: str, temperature: float, top_k: float, top_p: float) -> str:
        """The chart of next tokens as HTML."""
        samplings = strategies(temperature, top_k, top_p)
        del samplings["Greedy"]
        try:
            return chart(next_tokens(self.run, prompt, samplings), self.run.model.config.vocab_size)
        except ValueError as error:
            return remark(str(error))


def build_page(run: Run, prompt: str = "") -> "Blocks":
    """Build the page of a model, ready to be launched, with `prompt` in its box at first.

    Raises:
        ValueError: gradio is not installed.
    """
    gr = _gradio()
    answers = Answers(run, gr)
    html = partial(gr.HTML, apply_default_css=False)
    slider = partial(gr.Slider, buttons=[])
    name = Path(run.name).name
    with gr.Blocks(title=f"{name}: demo", analytics_enabled=False) as page:
        html(header(name, facts(run)), elem_id="facts")
        with gr.Row():
            with gr.Column(scale=0, min_width=280):
                text = gr.Textbox(prompt, label="Prompt", lines=4, max_lines=10, elem_id="prompt")
                with gr.Row():
                    button = partial(gr.Button, min_width=80)
                    start = button("Generate", variant="primary", elem_id="generate")
                    stop = button("Stop", elem_id="stop")
                temperature = slider(0.1, 2.0, 1.0, step=0.05, label="Temperature")
                top_k = slider(1, 200, 50, step=1, label="Top-k: k")
                top_p = slider(0.05, 1.0, 0.9, step=0.05, label="Nucleus: p")
                length = slider(10, 400, 100, step=10, label="Tokens at most", elem_id="length")
                seed = gr.Number(1337, precision=0, minimum=0, label="Seed", elem_id="seed")
            with gr.Column():
                with gr.Row():
                    texts = [
                        html(column(name, sampling, prompt), elem_id=f"column-{name.lower()}")
                        for name, sampling in strategies().items()
                    ]
                next_token = html(elem_id="next")
        knobs = [text, temperature, top_k, top_p]
        on = partial(gr.on, show_progress="hidden", api_visibility="private")
        begun = [page.load, start.click, text.submit]  # so that the page opens with texts in it
        making = on(begun, answers.generate, [*knobs, length, seed], texts)
        stop.click(None, cancels=[making])
        changed = [page.load, *(knob.change for knob in knobs)]
        on(changed, answers.chances, knobs, next_token, trigger_mode="always_last")
    return page


def _gradio() -> Any:
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported
    try:
        import gradio
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise ValueError("the demo needs the gradio package: pip install -e '.[demo]'") from None
    return gradio


@dataclass(frozen=True)
class Arguments:
    """Try a trained model in the browser: strategies side by side, and the next token's chances."""

    run: Positional[str]
    """Run folder of `python train.py`; folder in Hugging Face's GPT-2 format; demo, the model that
    ships with this code; or a model of the Hugging Face hub, such as gpt2."""
    prompt: str = "Once upon a time"
    """Text in the prompt box at first."""
    port: int = 7860
    """Port of the page on 127.0.0.1."""
    checkpoint: str = "best"
    """Of a run folder: best, last, or the number of a step."""
    device: str = "auto"
    """auto, cpu, cuda, mps."""


def main(arguments: Arguments) -> None:
    _check_port(arguments.port)
    gr = _gradio()
    run = open_model(arguments.run, checkpoint=arguments.checkpoint, device=arguments.device)
    page = build_page(run, arguments.prompt)
    # Of these weights gradio has all Latin letters; its 600 is a fragment.
    sans = gr.themes.LocalFont("IBM Plex Sans", weights=(400, 700))
    mono = gr.themes.LocalFont("IBM Plex Mono")
    page.queue().launch(
        server_name=HOST,
        server_port=arguments.port,
        share=False,
        ssr_mode=False,
        quiet=True,
        prevent_thread_lock=True,
        footer_links=[],
        theme=gr.themes.Base(
            primary_hue="blue",
            neutral_hue="slate",
            font=[sans, "ui-sans-serif", "system-ui", "sans-serif"],
            font_mono=[mono, "ui-monospace", "monospace"],
        ).set(body_text_color_subdued="*neutral_500"),
        css=CSS,
    )
    where = f"http://{HOST}:{arguments.port}"
    print(f"{run} is at {where} (Ctrl-C ends it)", flush=True)
    page.block_thread()


def _check_port(port: int) -> None:
    with socket.socket() as probe:
        # As servers do, so that a port that was just given back can be taken at once.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise ValueError(
                f"port {port} is not free on {HOST} ({error.strerror}): end the program that uses "
                "it, or choose another --port"
            ) from None


if __name__ == "__main__":
    from gpt2.common.cli import run_tool

    run_tool(main, Arguments)
