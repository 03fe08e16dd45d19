// Small things that all parts of the page use.

export const $ = (id) => document.getElementById(id);

export function text(tag, content) {
  const element = document.createElement(tag);
  element.textContent = content;
  return element;
}

// Seconds as minutes and seconds.
export function clock(seconds, digits = 1) {
  const whole = Math.max(0, seconds), minutes = Math.floor(whole / 60);
  return `${minutes}:${(whole - 60 * minutes).toFixed(digits).padStart(digits ? digits + 3 : 2, "0")}`;
}

export function remembered(name) {
  try { return JSON.parse(localStorage.getItem(`musicldm ${name}`)); } catch { return null; }
}

export function remember(name, value) {
  try { localStorage.setItem(`musicldm ${name}`, JSON.stringify(value)); } catch { /* private windows keep nothing */ }
}

let hiding;
// Says something for a while; `undo` may take it back.
export function toast(sentence, undo = null) {
  const box = $("toast"), button = box.querySelector("button");
  box.querySelector("span").textContent = sentence;
  button.hidden = undo === null;
  button.onclick = () => { box.hidden = true; undo?.(); };
  box.hidden = false;
  clearTimeout(hiding);
  hiding = setTimeout(() => { box.hidden = true; }, undo ? 10000 : 4000);
  return () => { if (!box.hidden && undo) { box.hidden = true; undo(); } };
}
