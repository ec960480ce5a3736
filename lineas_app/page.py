"""The page in Gradio: sliders to the left, results to the right. The only file that knows Gradio."""

import os
import socket
import threading
from collections.abc import Sequence
from typing import Any

from . import shown
from .controls import PRICE, STRENGTH, Control
from .desk import Desk
from .makers import Sampling

__all__ = ["build", "check_address", "serve", "wait"]

MORE = 3  # steerings that a visitor can open beside those that were there
WAITING = 32  # requests; whoever comes then is told that it is busy
# A slider's number counts when its box is left; who presses Enter there has done with it, too.
ENTER = """() => document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && event.target.matches("[id^=slider-] input[type=number]")) event.target.blur();
})"""
FONTS = ("system-ui", "sans-serif"), ("ui-monospace", "monospace")  # of the visitor's own: none is fetched


def gradio() -> Any:
    """Gradio, told to report to nobody. ModuleNotFoundError, with what to install, where it is missing."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["GRADIO_RUN_HISTORY"] = "False"
    try:
        import gradio as gr
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise ModuleNotFoundError("the app needs gradio; install it with: pip install 'lineas[app]'") from None
    return gr


class Page:
    """What happens on the page: each method takes what its components hold, and returns what they shall show.

    `opened` is the visitor's own: the steerings that were opened beside those that all have.
    """

    def __init__(self, desk: Desk):
        self.desk, self.gr = desk, gradio()
        self.slots = len(desk.controls) + (MORE if desk.may_open else 0)

    def controls(self, opened: Sequence[Control] | None) -> list[Control]:
        return [*self.desk.controls, *(opened or ())]

    def make(
        self, prompts: str, tokens: float, heat: float, seed: float, unit: str, opened: Any, *values: float
    ) -> tuple[str, str]:
        """Results, and the figures with where the sliders stand."""
        controls = self.controls(opened)
        strengths = [(c, c.strength(value, unit)) for c, value in zip(controls, values, strict=False)]
        found = self.desk.compare(prompts, strengths, Sampling.of(tokens, heat, seed))
        return shown.comparison(found), shown.figures(strengths, self.desk.report)

    def moved(
        self, prompts: str, tokens: float, heat: float, seed: float, unit: str, opened: Any, *values: float
    ) -> tuple[str, str]:
        """The same, where a number beyond a slider, which comes as it was typed, is the end that the page shows."""
        ends = (c.within(value, unit) for c, value in zip(self.controls(opened), values, strict=False))
        return self.make(prompts, tokens, heat, seed, unit, opened, *ends)

    def switch(self, unit: str, before: str, opened: Any, *values: float) -> list[Any]:
        """All sliders in another unit, where they stood."""
        controls = self.controls(opened)
        strengths = [c.strength(c.within(v, before), before) for c, v in zip(controls, values, strict=False)]
        sliders = [self._update(c, unit, s) for c, s in zip(controls, strengths, strict=True)]
        return [unit, *sliders, *[self.gr.skip()] * (self.slots - len(sliders))]

    def open(self, folder: str, unit: str, opened: Any) -> list[Any]:
        """One slider more, at 0."""
        opened = list(opened or ())
        if len(opened) == MORE:
            raise ValueError(f"expected at most {MORE} more steerings; reload the page to begin anew")
        opened.append(self.desk.open(folder))
        before = len(self.desk.controls) + len(opened) - 1
        sliders: list[Any] = [self.gr.skip()] * self.slots
        sliders[before] = self._update(opened[-1], unit, 0.0)
        return [opened, "", *sliders]

    def _update(self, control: Control, unit: str, strength: float) -> Any:
        return self.gr.update(visible=True, **_shape(control, unit, strength))

    def sliders(self, unit: str) -> list[Any]:
        """One for each steering, the first one on, and hidden ones for those that are opened."""
        sliders = [self._slider(k, **_shape(c, unit, float(k == 0))) for k, c in enumerate(self.desk.controls)]
        hidden = {"minimum": -1, "maximum": 2, "value": 0, "step": 0.05, "visible": False}
        return sliders + [self._slider(k, **hidden) for k in range(len(sliders), self.slots)]

    def _slider(self, k: int, **options: Any) -> Any:
        """One whose values reach us as they were sent: we say what is wrong with one, not Gradio with a traceback."""
        found = self.gr.Slider(buttons=[], elem_id=f"slider-{k}", **options)
        found.preprocess = lambda payload: payload  # no class of our own, beside whose file Gradio would write another
        return found

    def said(self, action: Any) -> Any:
        """The same, where what goes wrong is said on the page in a line."""

        def run(*given: Any) -> Any:
            try:
                return action(*given)
            except Exception as error:
                raise self.gr.Error(described(error), duration=None, print_exception=False) from error

        return run


def described(error: Exception) -> str:
    """What went wrong; of errors that are not meant for a reader, also which kind they are."""
    text = " ".join(str(error).split())
    plain = isinstance(error, (ValueError, TypeError, OSError, ImportError)) or type(error) in (
        LookupError, RuntimeError,
    )  # fmt: skip
    return text if text and plain else f"{type(error).__name__}: {text}"


def _shape(control: Control, unit: str, strength: float) -> dict[str, Any]:
    span = control.span(unit)
    return {
        "minimum": span.low, "maximum": span.high, "step": span.step, "label": span.label,
        "value": control.value(strength, unit),
    }  # fmt: skip


def build(desk: Desk) -> Any:
    """The page of a desk, as Gradio's Blocks, to be launched."""
    page = Page(desk)
    gr, maker = page.gr, desk.maker
    unit = PRICE if any(control.dial for control in desk.controls) else STRENGTH
    texts = maker.makes == "texts"
    with gr.Blocks(title="lineas", analytics_enabled=False) as blocks, gr.Row():
        with gr.Column(scale=3, min_width=300):
            gr.HTML(shown.title(maker.name), elem_id="title")
            units = gr.Radio([PRICE, STRENGTH], value=unit, label="Sliders in", visible=unit == PRICE or desk.may_open)
            sliders = page.sliders(unit)
            prompts = gr.Textbox(
                "\n".join(maker.examples), label="Prompts, one a line", lines=4, max_lines=8, elem_id="prompts"
            )
            with gr.Row():
                tokens = gr.Number(24, label="New tokens", precision=0, min_width=70, visible=texts)
                heat = gr.Number(1.0, label="Temperature", step=0.1, min_width=70, visible=texts)
                seed = gr.Number(0, label="Seed", precision=0, min_width=70)
            button = gr.Button("Write" if texts else "Draw", variant="primary", elem_id="make")
            with gr.Row(visible=desk.may_open):
                folder = gr.Textbox(label="Open another steering", placeholder="its folder", elem_id="folder")
        with gr.Column(scale=7):
            shows = [gr.HTML(elem_id="results"), gr.HTML(elem_id="figures")]

        before, opened = gr.State(unit), gr.State([])
        given = [prompts, tokens, heat, seed, units, opened, *sliders]
        how = {"concurrency_limit": 1, "trigger_mode": "always_last"}
        make, moved, switch, add = map(page.said, (page.make, page.moved, page.switch, page.open))
        hidden = {"api_visibility": "private"}
        blocks.load(make, given, shows, **how, **hidden)
        button.click(make, given, shows, **how, api_name="make")
        for event in (*(s.release for s in sliders), *(n.submit for n in (tokens, heat, seed))):
            event(moved, given, shows, **how, **hidden)
        units.input(switch, [units, before, opened, *sliders], [before, *sliders], queue=False, **hidden)
        folder.submit(add, [folder, units, opened], [opened, folder, *sliders], **hidden)
    return blocks.queue(max_size=WAITING, default_concurrency_limit=1)


def serve(desk: Desk, *, host: str = "127.0.0.1", port: int | None = None) -> tuple[Any, str]:
    """Start to serve a page, in threads of its own.

    Parameters
    ----------
    desk : Desk
    host : str
        The address to listen on; the default takes requests of this computer only.
    port : int, optional
        If not given, the first from 7860 on that is free.

    Returns
    -------
    What is served, to close, and its address for a browser.

    Raises
    ------
    OSError
        Nothing can listen there.
    """
    check_address(host, port)
    gr, blocks = gradio(), build(desk)
    theme = gr.themes.Default(font=FONTS[0], font_mono=FONTS[1])
    _, address, _ = blocks.launch(
        server_name=host, server_port=port, share=False, prevent_thread_lock=True, quiet=True, inbrowser=False,
        ssr_mode=False, enable_monitoring=False, max_file_size=1, footer_links=[], theme=theme, js=ENTER,
    )  # fmt: skip
    return blocks, address


def check_address(host: str, port: int | None) -> None:
    """OSError where nothing can listen there."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind((host, port or 0))
        except OSError as error:
            where = host if port is None else f"{host}, port {port}"
            raise OSError(f"expected an address to listen on, got {where}: {error.strerror or error}") from error


def wait() -> None:
    """Until somebody interrupts."""
    threading.Event().wait()
