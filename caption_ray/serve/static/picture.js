// Pictures before they are sent, made smaller where they are too large.

/** What the service takes, bytes; it writes that into the page. */
export const MAX_BYTES = Number(document.querySelector('meta[name="max-bytes"]').content);
/** Bytes that hold far more than the model sees; more take long to send, and the service waits for seconds only. */
export const ENOUGH_BYTES = Math.min(MAX_BYTES, 2 << 20);
const LEAST_BYTES = Math.min(MAX_BYTES, 64 << 10); // what is this small is sent as it is, however slowly
const SMALLER_SIDE = 2048; // pixels; the model looks at far fewer
const JPEG_QUALITY = 0.9;

/** Whether its bytes can be read: those of a folder cannot, nor of a file that has changed since it was chosen. */
export function isReadable(file) {
  return file.slice(0, 1).arrayBuffer().then(() => true, () => false);
}

/** Whether the browser is sure that this is no picture. A file without a type may be one. */
export function isSurelyNoPicture(file) {
  return file.type !== "" && !file.type.startsWith("image/");
}

/** Whether it was refused for its kind, AVIF or HEIC perhaps, or a variant of BMP, which the service does not read. */
export function isOfAnotherKind({ name, type }, { status, code }) {
  const isRead = /^image\/(bmp|gif|jpeg|png|tiff|webp|x-portable-)/.test(type);
  if (status === 415) return (type.startsWith("image/") && !isRead) || /\.hei[cf]$/i.test(name);
  return code === "undecodable_picture" && type === "image/bmp";
}

/** Whether a refusal asks for a smaller copy; of what is one already (not `isOriginal`), only by saying how small. */
export function isTooLarge(picture, isOriginal, { status, code, limit }) {
  return isOriginal ? status === 413 || code === "too_many_pixels" : status === 413 && limit && picture?.size > limit;
}

/** How many bytes to send instead of so many that did not arrive in time. */
export function fewerBytes(count) {
  return Math.max(LEAST_BYTES, Math.floor(count / 4));
}

/** Return the picture as a JPEG of at most `maxBytes`. Rejects if the browser cannot read it. */
export async function shrink(file, maxBytes) {
  const bitmap = await createImageBitmap(file);
  try {
    for (let side = SMALLER_SIDE; side >= 64; side /= 2) {
      const smaller = await asJpeg(bitmap, side);
      if (smaller.size <= maxBytes) return smaller;
    }
  } finally {
    bitmap.close();
  }
  throw new RangeError(`no size of this picture has at most ${maxBytes} bytes`);
}

/** "10 MB", "14.2 MB", "812 kB", counted in powers of two as file managers do. */
export function formatBytes(count) {
  const kilobytes = count / 1024;
  return kilobytes < 1000
    ? `${Math.max(1, Math.round(kilobytes))} kB`
    : `${(kilobytes / 1024).toFixed(1).replace(/\.0$/, "")} MB`;
}

function asJpeg(bitmap, longSide) {
  const scale = Math.min(1, longSide / Math.max(bitmap.width, bitmap.height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  const context = canvas.getContext("2d");
  context.fillStyle = "white"; // as the service does with transparency
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return new Promise((resolve, reject) =>
    canvas.toBlob((blob) => (blob ? resolve(blob) : reject(new Error("too large to draw"))), "image/jpeg", JPEG_QUALITY),
  );
}
