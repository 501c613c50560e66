// A widget needs a running notebook. In the book it stands still: this shows the text that it last showed, which the
// notebook keeps in its widget state, and says where it can be moved.
document.addEventListener("DOMContentLoaded", () => {
  const stored = document.querySelector('script[type="application/vnd.jupyter.widget-state+json"]');
  const models = stored ? JSON.parse(stored.textContent).state : {};

  const pieces = (id) => {
    const model = models[String(id).replace("IPY_MODEL_", "")];
    if (!model) return [];
    const own = model.model_name === "HTMLModel" ? [model.state.value] : [];
    return [...own, ...(model.state.children || []).flatMap(pieces)];
  };

  for (const view of document.querySelectorAll('script[type="application/vnd.jupyter.widget-view+json"]')) {
    const still = document.createElement("div");
    still.className = "still";
    still.innerHTML = '<p class="note">Still picture. Run the notebook in JupyterLab to move it.</p>';
    for (const piece of pieces(JSON.parse(view.textContent).model_id)) {
      still.insertAdjacentHTML("beforeend", `<div>${piece}</div>`);
    }
    view.after(still);
  }
});

// Very wide pictures scroll on a narrow screen; shrunk to its width they could not be read.
window.addEventListener("load", () => {
  for (const image of document.querySelectorAll(".bd-article img")) {
    image.classList.toggle("wide", image.naturalWidth > 700);
  }
});
