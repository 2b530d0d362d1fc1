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
  document.addEventListener("click", (event) => {
    const items = "button[id], .thumbnail-item, :is(#search-examples, #classify-where) button";
    if (event.target.closest(items)) document.querySelector(".toast-close")?.click();
  });
}
