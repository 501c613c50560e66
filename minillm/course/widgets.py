"""Things to move with the mouse. Each computes what it shows from its input; none leafs through stored pictures."""

from html import escape
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from minillm.attention import attend_torch, attention_weights, causal_mask, share_heads
from minillm.model import Transformer


@torch.inference_mode()
def attention_maps(model: Transformer, ids: list[int]) -> Float[Tensor, "L H T T"]:
    """The attention weights of every layer and head for one sequence.

    Attention's inner product is a part that can be exchanged, so a part that also notes the weights does it.
    """
    maps: list[Tensor] = []

    def noting(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        seen = causal_mask(q.shape[2], k.shape[2]) if mask is None else mask
        maps.append(attention_weights(q, share_heads(k, q.shape[1]), seen)[0])
        return attend_torch(q, k, v, mask)

    layers: list[Any] = [block.attention for block in model.blocks]
    before = [layer.attend for layer in layers]
    try:
        for layer in layers:
            layer.attend = noting
        model(torch.tensor([ids]))
    finally:
        for layer, attend in zip(layers, before):
            layer.attend = attend
    return torch.stack(maps)


def tokens_html(pieces: list[str], weights: list[float], query: int) -> str:
    """Text as coloured tokens: the darker, the more the framed token looks at it; later tokens are grey."""
    spans = []
    for i, piece in enumerate(pieces):
        shown = escape(piece).replace("\n", "⏎<br>").replace(" ", "&nbsp;")
        share = weights[i] if i <= query else 0.0
        style = f"background:rgba(31,111,180,{share:.3f});color:{'#fff' if share > 0.55 else '#222'};"
        if i > query:
            style = "color:#aaa;"
        frame = "outline:2px solid #d9730d;" if i == query else ""
        title = f"{share:.0%}" if i <= query else "not yet written"
        spans.append(f'<span title="{title}" style="padding:2px 1px;border-radius:3px;{style}{frame}">{shown}</span>')
    body = "".join(spans)
    return (
        f'<div style="font:15px/2 monospace;background:#fff;color:#222;padding:8px;overflow-wrap:anywhere">{body}</div>'
    )


def attention_viewer(model: Transformer, tokenizer: Any, text: str) -> Any:
    """A text to type into, and sliders for layer, head and token; the tokens light up as that head looks at them.

    Raises ImportError that names the extra if ipywidgets is missing.
    """
    try:
        import ipywidgets as widgets
    except ImportError as error:
        raise ImportError("the viewer needs ipywidgets: pip install 'minillm-course[course]'") from error
    box = widgets.Text(value=text, description="text", layout=widgets.Layout(width="95%"), continuous_update=False)
    layer = widgets.IntSlider(description="layer", max=model.config.n_layers - 1)
    head = widgets.IntSlider(description="head", max=model.config.n_heads - 1)
    token = widgets.IntSlider(description="token")
    view, note = widgets.HTML(), widgets.HTML()
    state: dict[str, Any] = {}

    def read(_: Any = None) -> None:
        ids = tokenizer.encode(box.value)[: model.config.max_seq_len]
        if not ids:
            note.value = "Type at least one character."
            return
        state.update(maps=attention_maps(model, ids), pieces=[tokenizer.decode([i]) for i in ids])
        token.max = len(ids) - 1
        token.value = len(ids) - 1
        draw()

    def draw(_: Any = None) -> None:
        query = min(token.value, len(state["pieces"]) - 1)
        weights = state["maps"][layer.value, head.value, query].tolist()
        view.value = tokens_html(state["pieces"], weights, query)
        most = max(range(query + 1), key=weights.__getitem__)
        note.value = (
            f"Layer {layer.value}, head {head.value}: <b>{escape(repr(state['pieces'][query]))}</b> looks most at "
            f"<b>{escape(repr(state['pieces'][most]))}</b>, {query - most} tokens back, with {weights[most]:.0%}."
        )

    read()
    box.observe(read, "value")
    for slider in (layer, head, token):
        slider.observe(draw, "value")
    return widgets.VBox([box, widgets.HBox([layer, head, token], layout=widgets.Layout(flex_flow="wrap")), view, note])
