// What new music or a new part follows: chords, a MIDI file, a melody, and for new music a recording to accompany.

import { $ } from "./page.js";

const TEXTS = ["chords", "rhythm", "meter", "chords_bpm"];
const FILES = ["midi", "melody", "along"];

// Fills a <details> with the fields; those named in `without` are left out. `changed` is called when they are cleared.
export function build(details, hint, without, changed = () => {}) {
  details.append($("follow-fields").content.cloneNode(true));
  details.querySelector(".hint").textContent = hint;
  for (const name of without) details.querySelector(`[name=${name}]`).closest("label").remove();
  details.querySelector(".clear").onclick = () => {
    for (const field of fieldsOf(details)) if (FILES.includes(field.name) || TEXTS.includes(field.name)) field.value = "";
    changed();
  };
}

const fieldsOf = (details) => details.querySelectorAll("input, select");

// Shows the fields of the kinds that a model takes; none at all if it takes none of them.
export function offer(details, kinds) {
  const labels = [...details.querySelectorAll("[data-kind]")];
  for (const label of labels) label.hidden = !kinds.includes(label.dataset.kind);
  details.hidden = labels.every((label) => label.hidden);
}

// What was given, as fields and files of a request; `any` says whether there is something.
export function given(details) {
  const fields = {}, files = {};
  if (details.hidden) return { fields, files, any: false };
  const offered = [...fieldsOf(details)].filter((field) => !field.closest("label").hidden);
  const named = Object.fromEntries(offered.map((field) => [field.name, field]));
  if (named.chords?.value.trim()) {
    fields.chords = named.chords.value;
    for (const name of ["rhythm", "meter"]) if (named[name].value) fields[name] = named[name].value;
  }
  for (const name of FILES) if (named[name]?.files[0]) files[name] = named[name].files[0];
  return { fields, files, any: Boolean(fields.chords || Object.keys(files).length) };
}
