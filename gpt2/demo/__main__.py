"""A local web page for a trained model: strategies side by side, and what the next token may be.

    python -m gpt2.demo runs/python-docs-demo

The page is served on 127.0.0.1 only, and neither it nor the server asks anything of the network.
gpt2/demo/model.py has what it shows, gpt2/demo/html.py how that looks.
"""

import os
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tyro.conf import Positional

from gpt2.demo.html import CSS, chart, column, header, note, remark
from gpt2.demo.model import facts, next_tokens, side_by_side, strategies
from gpt2.generate.sampling import Sampling
from gpt2.runs.run import Run
from gpt2.weights.open_model import open_model

if TYPE_CHECKING:
    from gradio import Blocks

HOST = "127.0.0.1"


def build_page(run: Run, prompt: str = "") -> "Blocks":
    """The page of a run, ready to be launched.

    Args:
        run: the model.
        prompt: what stands in the prompt box at first.

    Raises:
        ValueError: gradio is not installed.
    """
    gr = _gradio()

    def generate(
        text: str, temperature: float, top_k: float, top_p: float, length: float, seed: float | None
    ) -> Iterator[list[str]]:
        if seed is None:
            raise gr.Error("Give a seed, such as 1337.", print_exception=False)
        samplings = _strategies(temperature, top_k, top_p)
        made = dict.fromkeys(samplings, "")

        def columns(made: Mapping[str, str], *, live: bool) -> list[str]:
            return [column(n, note(s), text, made[n], live=live) for n, s in samplings.items()]

        try:
            for made in side_by_side(run, text, samplings, max_tokens=int(length), seed=int(seed)):
                yield columns(made, live=True)
        except ValueError as error:
            raise gr.Error(str(error), print_exception=False) from error
        yield columns(made, live=False)

    def chances(text: str, temperature: float, top_k: float, top_p: float) -> str:
        samplings = _strategies(temperature, top_k, top_p)
        del samplings["Greedy"]
        try:
            return chart(next_tokens(run, text, samplings), run.model.config.vocab_size)
        except ValueError as error:
            return remark(str(error))

    name = Path(run.name).name
    with gr.Blocks(title=f"{name}: demo", analytics_enabled=False) as page:
        gr.HTML(header(name, facts(run)), elem_id="facts", apply_default_css=False)
        with gr.Row():
            with gr.Column(scale=0, min_width=280):
                text = gr.Textbox(prompt, label="Prompt", lines=4, max_lines=10, elem_id="prompt")
                with gr.Row():
                    start = gr.Button(
                        "Generate", variant="primary", elem_id="generate", min_width=80
                    )
                    stop = gr.Button("Stop", elem_id="stop", min_width=80)
                temperature = gr.Slider(0.1, 2.0, 1.0, step=0.05, label="Temperature", buttons=[])
                top_k = gr.Slider(1, 200, 50, step=1, label="Top-k: k", buttons=[])
                top_p = gr.Slider(0.05, 1.0, 0.9, step=0.05, label="Nucleus: p", buttons=[])
                length = gr.Slider(
                    10, 400, 100, step=10, label="Tokens at most", buttons=[], elem_id="length"
                )
                seed = gr.Number(1337, precision=0, minimum=0, label="Seed", elem_id="seed")
            with gr.Column():
                with gr.Row():
                    texts = [
                        gr.HTML(
                            column(name, note(sampling), prompt, "", live=False),
                            elem_id=f"column-{name.lower()}",
                            apply_default_css=False,
                        )
                        for name, sampling in _strategies().items()
                    ]
                next_token = gr.HTML(elem_id="next", apply_default_css=False)
        knobs = [text, temperature, top_k, top_p]
        making = gr.on(
            [start.click, text.submit],
            generate,
            [*knobs, length, seed],
            texts,
            show_progress="hidden",
            api_visibility="private",
        )
        stop.click(None, cancels=[making])
        gr.on(
            [page.load, *(knob.change for knob in knobs)],
            chances,
            knobs,
            next_token,
            show_progress="hidden",
            trigger_mode="always_last",
            api_visibility="private",
        )
    return page


def _strategies(
    temperature: float = 1.0, top_k: float = 50, top_p: float = 0.9
) -> dict[str, Sampling]:
    """From what sliders give, which may be whole numbers as floats."""
    return strategies(temperature=temperature, top_k=int(top_k), top_p=top_p)


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
    """What stands in the prompt box at first."""
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
    if not 1 <= port <= 65535:
        raise ValueError(f"--port must be 1 to 65535, got {port}")
    with socket.socket() as probe:
        # As servers do, so that a port which was just given back can be had at once.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise ValueError(
                f"port {port} cannot be had on {HOST} ({error.strerror}): end what uses it, or "
                "choose another --port"
            ) from None


if __name__ == "__main__":
    from gpt2.common.cli import run_tool

    run_tool(main, Arguments)
