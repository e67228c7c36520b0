/** What a service logs: lines for people, through `log` of the service's options, to standard error unless given. */

const MINUTE = 60_000;
/** Different lines in a minute; further ones are not logged, so that nobody can fill a disk with new ones. */
const MOST = 100;

/** @type {import("./index.js").Log} */
export const toStandardError = {
  info: (text) => write("info", text),
  warn: (text) => write("warn", text),
  error: (text, error) => write("error", `${text}: ${error instanceof Error ? error.stack : String(error)}`),
};

/**
 * @param {string} level
 * @param {string} text
 */
function write(level, text) {
  process.stderr.write(`${new Date().toISOString()} [kraftek-service#${level}] ${text}\n`);
}

/**
 * Logs each line at most once a minute.
 *
 * @param {(text: string) => void} log
 * @returns {(text: string) => void}
 */
export function onceAMinute(log) {
  /** @type {Map<string, number>} */
  const logged = new Map();
  return (text) => {
    const now = performance.now();
    for (const [line, at] of logged) if (now - at >= MINUTE) logged.delete(line);
    if (logged.has(text) || logged.size >= MOST) return;
    logged.set(text, now);
    log(text);
  };
}
