// The page's elements by their ids, and the line that screen readers speak.

export const byId = (id) => document.getElementById(id);

/** Say it to screen readers. */
export function announce(text) {
  byId("status").textContent = text;
}
