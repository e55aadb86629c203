// The clipboard, where the browser offers it and where it does not.

/** Copy a text. Browsers offer the clipboard on https and localhost only; elsewhere there is the old way. */
export async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = Object.assign(document.createElement("textarea"), { value: text, className: "visually-hidden" });
    const focused = document.activeElement;
    document.body.append(area);
    area.select();
    const hasCopied = document.execCommand("copy");
    area.remove();
    focused?.focus();
    return hasCopied;
  }
}
