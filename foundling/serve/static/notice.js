// SPDX-License-Identifier: Apache-2.0
// An error as one line with a way out.
import { $, h } from "./dom.js";

/** What to offer for an error: {text, actions}. `again` repeats what failed. */
export function explain(error, again = null) {
  const way = {
    login: [["Sign in", () => location.reload()]],
    model: [["Reload the models", () => location.reload()], ...(again ? [["Try again", again]] : [])],
  }[error.kind] ?? (again ? [["Try again", again]] : []);
  const line = h("p", { class: "line" }, h("span", { text: error.message || String(error) }));
  if (error.kind === "busy") countDown(line, error.retryAfter, again);
  else line.append(...way.map(([text, action]) => h("button", { text, type: "button", onclick: action })));
  return line;
}

/** "busy, try again in 3 s", and then a button. */
function countDown(line, seconds, again) {
  const rest = h("span", { text: ` Try again in ${seconds} s.`, "aria-hidden": "true" });
  line.append(rest, h("span", { class: "unseen", text: " Try again in a moment." })); // said once, not each second
  const timer = setInterval(() => {
    seconds -= 1;
    if (seconds > 0 && line.isConnected) rest.textContent = ` Try again in ${seconds} s.`;
    else {
      clearInterval(timer);
      if (again) rest.replaceWith(h("button", { text: "Try again", type: "button", onclick: again }));
      else rest.remove();
    }
  }, 1000);
}

/** Above the views, until it is closed or another one takes its place. */
export function notify(error, again = null) {
  if (error.kind === "stopped") return;
  const close = h("button", { text: "Close", type: "button", onclick: clearNotice });
  const line = explain(error, again && (() => {
    clearNotice();
    again();
  }));
  line.append(close);
  $("notice").replaceChildren(line);
  $("notice").hidden = false;
}

export function clearNotice() {
  $("notice").hidden = true;
  $("notice").replaceChildren();
}
