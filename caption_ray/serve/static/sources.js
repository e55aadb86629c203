// Where pictures come from: chosen, photographed, pasted or dropped.

/** Call `onPicture` with each file that a person brings, and `onNothing` for a drop without one. */
export function listenForPictures(onPicture, onNothing) {
  for (const [action, id] of [["choose", "file"], ["photograph", "photo"]]) {
    const input = document.getElementById(id);
    for (const button of document.querySelectorAll(`[data-action="${action}"]`)) {
      button.addEventListener("click", () => input.click());
    }
    input.addEventListener("change", () => {
      const [file] = input.files;
      if (file) onPicture(file);
      input.value = ""; // the same file may be chosen again
    });
  }
  document.addEventListener("paste", ({ clipboardData }) => {
    const file = fileFrom(clipboardData);
    if (file) onPicture(file);
  });
  listenForDrops(onPicture, onNothing);
}

function listenForDrops(onPicture, onNothing) {
  let depth = 0; // of nested elements that the pointer has entered
  const setDepth = (value) => {
    depth = Math.max(0, value);
    document.body.classList.toggle("dragging", depth > 0);
  };
  document.addEventListener("dragenter", () => setDepth(depth + 1));
  document.addEventListener("dragleave", () => setDepth(depth - 1));
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    setDepth(0);
    const file = fileFrom(event.dataTransfer);
    if (file) onPicture(file);
    else onNothing();
  });
}

/** The first file of a paste or a drop, if any. */
function fileFrom(transfer) {
  return transfer?.files?.[0] ?? null;
}
