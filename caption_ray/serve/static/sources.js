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
  let entered = null; // the element that the pointer has entered last; one that is taken away is never left
  const enter = (element) => {
    entered = element;
    document.body.classList.toggle("dragging", element !== null);
  };
  document.addEventListener("dragenter", (event) => enter(event.target));
  document.addEventListener("dragleave", (event) => {
    if (event.target === entered || !entered?.isConnected) enter(null);
  });
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    enter(null);
    const file = fileFrom(event.dataTransfer);
    if (file) onPicture(file);
    else onNothing();
  });
}

/** The first file of a paste or a drop, if any. */
function fileFrom(transfer) {
  return transfer?.files?.[0] ?? null;
}
