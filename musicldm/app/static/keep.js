// Earlier pieces: a list that can be searched.

import * as api from "./api.js";
import { $, clock, text } from "./page.js";

let open = () => {};
let current = null;

export function start(openPiece) {
  open = openPiece;
  let waiting;
  $("search").addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(refresh, 200); });
  $("starred").addEventListener("change", refresh);
  return refresh();
}

export function mark(id) {
  current = id;
  for (const button of $("history").querySelectorAll("button")) {
    button.setAttribute("aria-current", String(button.dataset.id === id));
  }
}

export async function refresh() {
  const found = await api.results($("search").value, $("starred").checked);
  $("history").replaceChildren(...found.map((one) => {
    const row = document.createElement("li"), button = document.createElement("button");
    const when = new Date(one.created * 1000).toLocaleString([], { dateStyle: "short", timeStyle: "short" });
    const kind = one.kind === "generate" ? "" : ` · ${one.kind}`;
    button.type = "button";
    button.dataset.id = one.id;
    button.setAttribute("aria-current", String(one.id === current));
    button.append(text("b", `${one.starred ? "★ " : ""}${one.name}`), text("small", `${clock(one.seconds)}${kind} · ${when}`));
    button.onclick = () => open(one.id);
    row.append(button);
    return row;
  }));
  if (!found.length) {
    $("history").append(text("li", $("search").value ? "Nothing with these words." : "Nothing yet: what you make stays here."));
  }
}
