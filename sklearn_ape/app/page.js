() => {
  // For screen readers: Gradio names the button of an image "Thumbnail 1 of 12", not by its
  // caption, and does not announce results. Errors of earlier requests would remain next to new
  // results.
  new MutationObserver(() => {
    for (const image of document.querySelectorAll(".thumbnail-item img[alt]")) {
      const name = image.alt || image.title;
      if (name) image.closest("button").ariaLabel = name;
    }
    for (const name of ["classify-verdict", "classify-map", "align-result"]) {
      document.getElementById(name)?.setAttribute("aria-live", "polite");
    }
  }).observe(document.body, { childList: true, subtree: true });
  const triggers = {
    click:
      "button.lg, .thumbnail-item, " +
      ":is(#search-examples, #classify-where, #classify-image) button",
    keydown: "input, textarea",
    change: "input[type=file]",
    drop: "*",
  };
  for (const [type, items] of Object.entries(triggers)) {
    const closeError = (event) => {
      if (type === "keydown" && event.key !== "Enter") return;
      if (event.target.closest(items)) document.querySelector(".toast-close")?.click();
    };
    // Before the listeners of Gradio, which may show a new error.
    document.addEventListener(type, closeError, { capture: true });
  }
  // On narrow screens, results are outside the visible part of the page.
  const results = {
    "classify-verdict": "#classify-examples .thumbnail-item, button[id^=classify-]",
    "search-gallery": "#search-words *, #search-examples button, button[id^=search-]",
    "align-result": "#align-button",
  };
  const showResult = ({ type, key, target }) => {
    const isButton = target.closest("button") !== null;
    if (isButton ? type !== "click" : key !== "Enter") return;
    for (const [name, items] of Object.entries(results)) {
      const result = target.closest(items) && document.getElementById(name);
      const top = result?.getBoundingClientRect().top;
      if (top < 0 || top > 0.7 * window.innerHeight) result.scrollIntoView();
    }
  };
  document.addEventListener("click", showResult);
  document.addEventListener("keydown", showResult);
}
