// SPDX-License-Identifier: Apache-2.0
// From logits to the probabilities of a draw, as foundling/decode/sampling.py computes them: top-k on the logits,
// softmax with temperature, then top-p, then min-p. A test compares both.

// Penalties and forbidden tokens of a model's generation_config.json come before all that, and are not computed here.

/** Where the sliders begin. */
export const DEFAULTS = { temperature: 0.7, top_k: 0, top_p: 1, min_p: 0 };

/** What limits the shape of a draw, in the order of the sliders. */
export const CONTROLS = [
  { name: "temperature", label: "Temperature", low: 0, high: 2, step: 0.01, off: null },
  { name: "top_k", label: "Top-k", low: 0, high: 200, step: 1, off: 0 },
  { name: "top_p", label: "Top-p", low: 0.01, high: 1, step: 0.01, off: 1 },
  { name: "min_p", label: "Min-p", low: 0, high: 1, step: 0.01, off: 0 },
];

/** Logits in falling order, so that whatever is cut away is cut from the end.
 *
 * `ids`: of the tokens, as the logits are ordered. `logNormalizer`: logsumexp of all logits of the model, which is more
 * than these where the server shows only the most likely ones. */
export class Distribution {
  constructor(ids, logits, logNormalizer, complete) {
    this.complete = complete;
    this.logNormalizer = logNormalizer;
    const order = Uint32Array.from(logits.keys()).sort((a, b) => logits[b] - logits[a] || ids[a] - ids[b]);
    this.ids = Uint32Array.from(order, (at) => ids[at]);
    this.logits = Float32Array.from(order, (at) => logits[at]);
  }

  /** Of an answer of /playground/next. */
  static from(answer) {
    if (answer.logits === null) {
      const logits = answer.top.map((token) => token.logit);
      return new Distribution(answer.top.map((token) => token.id), logits, answer.log_normalizer, false);
    }
    const logits = floats(answer.logits);
    return new Distribution(Uint32Array.from(logits.keys()), logits, answer.log_normalizer, true);
  }

  get size() {
    return this.ids.length;
  }

  /** 0 for the most likely token; -1 for one that is not listed. */
  rankOf(id) {
    return this.ids.indexOf(id);
  }

  /** Of the model itself, at temperature 1. */
  logprob(rank) {
    return this.logits[rank] - this.logNormalizer;
  }

  /** {n, probs}: the n most likely tokens can be drawn, with these probabilities; null where that takes logits that
   * the server does not show. */
  draw({ temperature, top_k, top_p, min_p }) {
    const { logits } = this;
    if (!logits.length) return null;
    if (temperature === 0) return { n: 1, probs: Float64Array.of(1) };
    let n = logits.length;
    if (top_k > 0 && top_k < n) for (n = top_k; n < logits.length && logits[n] === logits[top_k - 1];) n += 1; // ties
    const weights = Float64Array.from(logits.subarray(0, n), (logit) => Math.exp((logit - logits[0]) / temperature));
    let total = weights.reduce((sum, weight) => sum + weight, 0);
    if (!this.complete && !(top_k > 0 && top_k <= logits.length)) {
      if (temperature !== 1) return null;
      total = Math.exp(this.logNormalizer - logits[0]);
    }
    const probs = weights.map((weight) => weight / total);
    const cut = Math.min(nucleus(probs, n, top_p), above(probs, n, min_p));
    if (!this.complete && cut === logits.length && !(top_k > 0 && top_k <= cut)) return null;
    return { n: cut, probs: normalized(probs.subarray(0, cut), top_p < 1 || min_p > 0) };
  }
}

/** Of base64 of little-endian float32. */
export function floats(text) {
  const bytes = Uint8Array.from(atob(text), (sign) => sign.charCodeAt(0)), view = new DataView(bytes.buffer);
  return Float32Array.from({ length: bytes.length / 4 }, (_, at) => view.getFloat32(4 * at, true));
}

/** How many tokens reach top_p together. */
function nucleus(probs, n, top_p) {
  if (top_p >= 1) return n;
  let before = 0;
  for (let at = 0; at < n; at += 1) {
    if (before >= top_p) return at;
    before += probs[at];
  }
  return n;
}

/** How many tokens have at least min_p of the probability of the most likely one. */
function above(probs, n, min_p) {
  let size = n;
  while (min_p > 0 && size > 1 && probs[size - 1] < min_p * probs[0]) size -= 1;
  return size;
}

function normalized(probs, truncated) {
  if (!truncated) return probs;
  const total = probs.reduce((sum, p) => sum + p, 0);
  return probs.map((p) => p / total);
}
