// The piece that is open: hearing it, comparing versions, selecting a stretch, changing it.

import WaveSurfer from "./vendor/wavesurfer.esm.js";
import Regions from "./vendor/regions.esm.js";
import Spectrogram from "./vendor/spectrogram.esm.js";
import Timeline from "./vendor/timeline.esm.js";
import * as api from "./api.js";
import * as follow from "./follow.js";
import * as make from "./make.js";
import * as keep from "./keep.js";
import { $, clock, text, toast } from "./page.js";

const KINDS = { generate: "new", recording: "recording", inpaint: "replaced", extend: "extended", vary: "varied", retake: "retake" };
const versions = new Map(); // id -> what is loaded of it
let shownId = null; // of the version that is heard
let selection = null; // {start, end} in seconds
let undoDelete = null;
let model = null; // that edits are made with

const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

export function start() {
  $("play").onclick = toggle;
  $("repeat").onchange = () => { for (const one of versions.values()) one.media.loop = $("repeat").checked && !selection; };
  $("spectrogram").onchange = () => showSpectrogram(versions.get(shownId));
  $("piece-name").onchange = () => api.change(shownId, { name: $("piece-name").value.trim() || null }).then(keep.refresh, failed);
  $("star").onclick = star;
  $("delete").onclick = remove;
  $("download").onchange = download;
  $("again").onclick = () => make.use(versions.get(shownId).about.recipe);
  $("edit-form").elements.amount.oninput = (event) => { $("amount-shown").value = `${event.target.value} %`; };
  for (const button of $("edit-form").querySelectorAll("[data-kind]")) button.onclick = () => change(button.dataset.kind);
  for (const name of ["from", "to"]) $("edit-form").elements[name].onchange = selectTyped;
  follow.build($("edit-follow"), "They begin where the new part begins.", ["along"]);
  $("edit-form").onsubmit = (event) => event.preventDefault();
  document.addEventListener("keydown", keys);
}

// Edits are made with the model of the form for new music.
export function useModel(chosen) {
  model = chosen.name;
  follow.offer($("edit-follow"), chosen.context_kinds);
}

function failed(error) { $("edit-error").textContent = error.message; }

// Opens a piece with all versions that it belongs to.
export async function open(id) {
  const before = versions.get(shownId), at = before?.media.currentTime ?? 0, playing = before && !before.media.paused;
  const family = await api.family(id);
  const ids = new Set(family.map((one) => one.id));
  for (const [other, version] of versions) if (!ids.has(other)) { version.surfer.destroy(); version.box.remove(); versions.delete(other); }
  for (const about of family) if (versions.has(about.id)) versions.get(about.id).about = about;
  $("empty").hidden = true;
  $("piece").hidden = false;
  drawTree(family, id);
  const about = family.find((one) => one.id === id);
  if (!versions.has(id)) versions.set(id, load(about));
  switchTo(id, before && ids.has(before.about.id) ? at : 0, playing && ids.has(before.about.id));
  history.replaceState(null, "", `#${id}`);
}

function drawTree(family, id) {
  const children = (parent) => family.filter((one) => (one.parent ?? null) === parent || (parent === null && one.parent && !family.some((other) => other.id === one.parent)));
  const row = [];
  const add = (one, depth, label) => {
    const button = text("button", `${"↳".repeat(Math.min(depth, 3))} ${label} ${KINDS[one.kind] ?? one.kind}`.trim());
    button.type = "button";
    button.setAttribute("aria-pressed", String(one.id === id));
    button.dataset.id = one.id;
    button.title = one.name;
    button.onclick = () => hear(one.id);
    row.push(button);
    children(one.id).forEach((child, i) => add(child, depth + 1, `${label}.${i + 1}`));
  };
  children(null).forEach((one, i) => add(one, 0, String.fromCharCode(65 + (i % 26))));
  $("versions").replaceChildren(...row);
}

// Another version of the same piece, at the same position.
function hear(id) {
  if (versions.has(id)) {
    const now = versions.get(shownId);
    switchTo(id, now.media.currentTime, !now.media.paused);
    history.replaceState(null, "", `#${id}`);
  } else {
    open(id).catch(failed);
  }
}

function load(about) {
  const box = document.createElement("div"), media = new Audio(api.audioUrl(about.id));
  box.className = "version";
  box.hidden = true;
  media.preload = "auto";
  $("stage").append(box);
  const regions = Regions.create();
  const surfer = WaveSurfer.create({
    container: box, media, height: 120, waveColor: css("--wave"), progressColor: css("--played"), cursorColor: css("--ink"),
    normalize: true, sampleRate: Math.max(8000, about.sampling_rate), plugins: [regions, Timeline.create({ style: { color: css("--soft"), fontSize: "11px" } })],
  });
  const version = { about, box, media, surfer, regions, beats: null };
  regions.enableDragSelection({ color: css("--select") });
  regions.on("region-created", (region) => { if (!region.isBeat && region.start !== region.end) select(version, region); });
  regions.on("region-updated", (region) => { if (!region.isBeat) select(version, region); });
  surfer.on("interaction", () => clearSelection());
  surfer.on("ready", () => { if (version.beats) drawBeats(version); });
  for (const event of ["timeupdate", "seeking"]) media.addEventListener(event, () => tick(version));
  for (const event of ["play", "pause", "ended"]) media.addEventListener(event, () => playing(version));
  api.beats(about.id).then((beats) => { version.beats = beats; facts(version); if (surfer.getDuration()) drawBeats(version); }, () => {});
  return version;
}

function drawBeats(version) {
  const downbeats = new Set(version.beats.downbeats_s);
  version.box.querySelector(".beats")?.remove();
  const layer = document.createElementNS("http://www.w3.org/2000/svg", "svg"), length = version.surfer.getDuration();
  layer.setAttribute("class", "beats");
  layer.setAttribute("aria-hidden", "true");
  layer.setAttribute("viewBox", "0 0 1000 100");
  layer.setAttribute("preserveAspectRatio", "none");
  layer.style.cssText = "position:absolute;left:0;top:4px;width:100%;height:120px;pointer-events:none;z-index:3";
  for (const beat of version.beats.times_s) {
    const line = document.createElementNS("http://www.w3.org/2000/svg", "line"), x = (1000 * beat) / length;
    const first = downbeats.has(beat);
    for (const [name, value] of Object.entries({ x1: x, x2: x, y1: first ? 0 : 80, y2: 100, stroke: css("--soft"), "stroke-width": 1, "vector-effect": "non-scaling-stroke", opacity: first ? 0.7 : 0.5 })) line.setAttribute(name, value);
    layer.append(line);
  }
  version.box.append(layer);
}

function switchTo(id, at, isPlaying) {
  const before = versions.get(shownId), now = versions.get(id);
  if (before && before !== now) { before.media.pause(); before.box.hidden = true; }
  shownId = id;
  now.box.hidden = false;
  now.media.loop = $("repeat").checked && !selection;
  if (at) now.media.currentTime = Math.min(at, now.about.seconds - 0.01);
  if (isPlaying) now.media.play();
  for (const button of $("versions").children) button.setAttribute("aria-pressed", String(button.dataset.id === id));
  clearSelection();
  $("piece-name").value = now.about.name;
  if (before !== now) $("edit-prompt").value = now.about.prompt;
  facts(now);
  showSpectrogram(now);
  playing(now);
  keep.mark(id);
}

function facts(version) {
  if (version.about.id !== shownId) return;
  const { about, beats } = version, recipe = about.recipe;
  const parts = [`${clock(about.seconds)} · ${about.sampling_rate / 1000} kHz ${about.channels === 1 ? "mono" : "stereo"}`];
  $("edit-form").elements.chords_bpm.placeholder = (beats?.tempo_bpm || 120).toFixed(1);
  if (beats?.tempo_bpm) parts.push(`${beats.tempo_bpm.toFixed(1)} BPM${recipe.bpm ? ` (asked ${recipe.bpm})` : ""}`);
  if (recipe.seed !== undefined) parts.push(`seed ${recipe.seed}`);
  if (recipe.model) parts.push(recipe.model);
  const near = recipe.nearest_training_clips;
  if (near?.verdict) parts.push(`${near.verdict}${near.clips?.[0] ? `, nearest: ${near.clips[0].file ?? near.clips[0].name}` : ""}`);
  $("facts").textContent = parts.join(" · ");
  $("star").textContent = about.starred ? "★" : "☆";
  $("star").setAttribute("aria-pressed", String(about.starred));
  const brief = (name, value) => name === "context" ? `a score, ${value.length} characters` : value;
  $("recipe").textContent = JSON.stringify(recipe, brief, 1);
  $("score").hidden = !recipe.context_kinds?.some((kind) => kind !== "along");
  $("score").href = `/v1/results/${about.id}/midi`;
  const ours = recipe.prompt !== undefined && recipe.seed !== undefined;
  $("again").hidden = !ours || about.kind !== "generate";
  document.querySelector("[data-kind=retake]").hidden = !ours || !["generate", "retake"].includes(about.kind);
}

function showSpectrogram(version) {
  if (!version) return;
  const wanted = $("spectrogram").checked;
  if (wanted && !version.spectrogram) {
    version.spectrogram = version.surfer.registerPlugin(Spectrogram.create({ height: 160, labels: true, scale: "mel", splitChannels: false, labelsColor: "#fff", labelsHzColor: "#fff" }));
  } else if (!wanted && version.spectrogram) {
    version.spectrogram.destroy();
    version.spectrogram = null;
  }
}

function tick(version) {
  if (version.about.id !== shownId) return;
  const at = version.media.currentTime;
  if (selection && $("repeat").checked && (at >= selection.end || at < selection.start - 0.2)) version.media.currentTime = selection.start;
  $("clock").textContent = `${clock(at)} / ${clock(version.about.seconds)}`;
}

function playing(version) {
  if (version.about.id !== shownId) return;
  $("play").textContent = version.media.paused ? "▶" : "❚❚";
  $("play").setAttribute("aria-label", version.media.paused ? "Play" : "Pause");
  tick(version);
}

function toggle() {
  const version = versions.get(shownId);
  if (!version) return;
  if (version.media.paused) {
    if (selection && $("repeat").checked) version.media.currentTime = selection.start;
    version.media.play();
  } else {
    version.media.pause();
  }
}

function snapped(version, time, direction) {
  if (!$("snap").checked || !version.beats?.times_s.length) return time;
  const near = version.beats.times_s.reduce((best, beat) => (Math.abs(beat - time) < Math.abs(best - time) ? beat : best));
  const gap = 30 / (version.beats.tempo_bpm || 60);
  return Math.abs(near - time) <= gap && near > 0 && near < version.about.seconds ? near : time;
}

function select(version, region) {
  for (const other of version.regions.getRegions()) if (other !== region) other.remove();
  const start = snapped(version, region.start), end = snapped(version, region.end);
  if (end > start && (Math.abs(start - region.start) > 1e-4 || Math.abs(end - region.end) > 1e-4)) region.setOptions({ start, end });
  selection = { start: region.start, end: region.end };
  $("edit-form").elements.from.value = selection.start.toFixed(2);
  $("edit-form").elements.to.value = selection.end.toFixed(2);
  version.media.loop = false;
  $("selection").textContent = `Selected ${clock(selection.start, 2)} to ${clock(selection.end, 2)}, ${(selection.end - selection.start).toFixed(2)} s.`;
}

// Selects what was typed, as by dragging.
function selectTyped() {
  const { from, to } = $("edit-form").elements, version = versions.get(shownId);
  const start = Math.max(0, Number(from.value)), end = Math.min(version.about.seconds, Number(to.value));
  if (from.value && to.value && end > start) version.regions.addRegion({ start, end, color: css("--select") });
}

function clearSelection() {
  selection = null;
  $("edit-form").elements.from.value = $("edit-form").elements.to.value = "";
  for (const version of versions.values()) version.regions.clearRegions();
  const version = versions.get(shownId);
  if (version) version.media.loop = $("repeat").checked;
  $("selection").textContent = "Drag over the waveform to select a stretch.";
}

async function change(kind) {
  const form = $("edit-form").elements, prompt = $("edit-prompt").value.trim();
  $("edit-error").textContent = "";
  try {
    const fields = { kind, source: shownId };
    if (prompt) fields.prompt = prompt; else if (kind !== "retake") throw new Error("Say what the new part should be like.");
    if (kind === "inpaint") {
      if (!selection) throw new Error("Select a stretch of the waveform first, by dragging over it.");
      Object.assign(fields, { mask_start_seconds: [selection.start], mask_end_seconds: [selection.end], snap: "none" });
    }
    if (kind === "extend") {
      Object.assign(fields, { before_s: Number(form.before.value), after_s: Number(form.after.value) });
      if (!(fields.before_s > 0 || fields.after_s > 0)) throw new Error("Say how many seconds to add before or after.");
    }
    if (kind === "vary" || kind === "retake") fields.amount = Number(form.amount.value) / 100;
    const { fields: followed, files, any } = follow.given($("edit-follow"));
    if (kind !== "retake") {
      fields.model = model; // a retake is made with the model of its source
      Object.assign(fields, followed);
      if (any) fields.context_guidance_scale = make.number(form.closely, "Strength") ?? 1;
      if (followed.chords) fields.bpm = make.number(form.chords_bpm, "Their tempo") ?? (versions.get(shownId).beats?.tempo_bpm || 120);
    }
    make.watch(await api.edit(fields, kind === "retake" ? {} : files), `${KINDS[kind]}: ${$("piece-name").value}`);
  } catch (error) {
    failed(error);
  }
}

async function star() {
  const version = versions.get(shownId);
  version.about = await api.change(shownId, { starred: !version.about.starred });
  facts(version);
  keep.refresh();
}

async function remove() {
  const id = shownId, name = versions.get(id).about.name;
  versions.get(id).media.pause();
  await api.change(id, { deleted: true });
  undoDelete = toast(`Deleted “${name}”.`, async () => { undoDelete = null; await api.change(id, { deleted: false }); await keep.refresh(); open(id); });
  $("piece").hidden = true;
  $("empty").hidden = false;
  history.replaceState(null, "", " ");
  keep.refresh();
}

function download() {
  const format = $("download").value;
  $("download").value = "";
  if (!format) return;
  const link = document.createElement("a");
  link.href = api.audioUrl(shownId, format, true);
  link.click();
}

function keys(event) {
  if (event.target.closest("input:not([type=checkbox]), textarea, select, dialog") && event.key !== "Escape") return;
  if (event.key === " " && event.target.closest("button, summary, input")) return; // which it presses
  const version = versions.get(shownId);
  if ((event.ctrlKey || event.metaKey) && event.key === "z" && undoDelete) { event.preventDefault(); undoDelete(); return; }
  if (event.ctrlKey || event.metaKey || event.altKey || !version || $("piece").hidden) return;
  const step = event.shiftKey ? 5 : 1;
  if (event.key === " ") toggle();
  else if (event.key === "ArrowLeft") version.media.currentTime = Math.max(0, version.media.currentTime - step);
  else if (event.key === "ArrowRight") version.media.currentTime = Math.min(version.about.seconds, version.media.currentTime + step);
  else if (event.key === "ArrowUp" || event.key === "ArrowDown") neighbour(event.key === "ArrowDown" ? 1 : -1);
  else if (event.key === "Escape") clearSelection();
  else return;
  event.preventDefault();
}

// The version before or after the one that is heard.
function neighbour(direction) {
  const buttons = [...$("versions").children], at = buttons.findIndex((one) => one.dataset.id === shownId);
  const other = buttons[(at + direction + buttons.length) % buttons.length];
  if (other && other.dataset.id !== shownId) hear(other.dataset.id);
}
