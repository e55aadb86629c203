// The page's elements by their ids, the line that screen readers speak, and the place of the keyboard.

export const byId = (id) => document.getElementById(id);

/** Say it to screen readers. */
export function announce(text) {
  byId("status").textContent = text;
}

/** Make a change that may hide or remove what has the focus; who was there goes on from the result's title. */
export function keepFocus(change) {
  const before = document.activeElement;
  change();
  const isLost = before && before !== document.body && !before.getClientRects().length;
  if (isLost) byId("result-title").focus({ preventScroll: true });
}
