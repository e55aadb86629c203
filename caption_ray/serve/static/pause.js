// Waiting that can be called off.

/** Wait so long; rejects with the signal's reason when it is aborted before. */
export function pause(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    const stop = () => (clearTimeout(timer), reject(signal.reason));
    const timer = setTimeout(() => (signal.removeEventListener("abort", stop), resolve()), milliseconds);
    signal.addEventListener("abort", stop, { once: true });
  });
}
