// The form for new music, and the queue of what is being made.

import * as api from "./api.js";
import * as follow from "./follow.js";
import { $, clock, remembered, remember, text, toast } from "./page.js";

const EXAMPLES = [
  "slow solo piano, calm and sad", "a fast rock band with drums and electric guitar", "a string quartet plays a waltz",
  "lo-fi hip hop with a warm electric piano", "8-bit video game music, cheerful", "big band jazz with brass",
];
let models = [];
let usual = {};
let onMade = () => {};
let onModel = () => {};

// Calls `madeOne` with the results of each job, and `modelChosen` with what is known of the chosen model.
export async function start(madeOne, modelChosen) {
  [onMade, onModel] = [madeOne, modelChosen];
  [models, usual] = await Promise.all([api.models(), api.defaults()]);
  const form = $("make-form");
  follow.build($("follow"), "The music is as long as they are. The tempo above is that of the chords.", ["chords_bpm"], shown);
  fill(form.elements.model, models.map((one) => one.name));
  fill(form.elements.scheduler, usual.schedulers);
  form.elements.scheduler.value = usual.scheduler;
  form.elements.guidance.value = usual.guidance_scale;
  form.elements.steps.value = usual.num_inference_steps;
  chosenModel();
  for (const [name, value] of Object.entries(remembered("make") ?? {})) {
    const field = form.elements[name];
    if (field?.type === "checkbox") field.checked = value; else if (field) field.value = value;
  }
  for (const example of EXAMPLES) {
    const button = text("button", example);
    button.type = "button";
    button.onclick = () => { $("prompt").value = example; $("prompt").focus(); };
    $("examples").append(button);
  }
  form.elements.model.onchange = chosenModel;
  form.addEventListener("input", shown);
  form.addEventListener("submit", (event) => { event.preventDefault(); make(); });
  $("prompt").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) make();
  });
  shown();
  for (const job of await api.jobs()) watch(job);
}

function fill(select, names) {
  select.replaceChildren(...names.map((name) => text("option", name)));
}

function chosenModel() {
  const form = $("make-form").elements;
  const model = models.find((one) => one.name === form.model.value) ?? models[0];
  const can = (what) => model.can.includes(what);
  $("novelty-field").hidden = !model.novelty;
  $("loop-row").hidden = !can("loop");
  form.bpm.closest("label").hidden = !can("bpm");
  follow.offer($("follow"), model.context_kinds);
  onModel(model);
  if (!remembered("make")) form.seconds.value = model.seconds;
}

function shown() {
  const form = $("make-form").elements;
  const { any, fields: { chords } } = follow.given($("follow"));
  $("length-shown").value = any ? "as what it follows" : `${Number(form.seconds.value)} s`;
  form.seconds.disabled = any;
  $("bars-field").hidden = !(form.loop.checked && form.bpm.value) || Boolean(chords);
  const kept = {};
  for (const field of form) if (field.name && field.name !== "seed" && field.type !== "file") kept[field.name] = field.type === "checkbox" ? field.checked : field.value;
  remember("make", kept);
}

export function number(field, label) {
  if (field.value.trim() === "" && !field.validity.badInput) return null;
  const value = Number(field.value);
  const least = Number(field.min || -Infinity), most = Number(field.max || Infinity);
  if (field.validity.badInput || Number.isNaN(value) || value < least || value > most) {
    field.focus();
    throw new Error(`${label} must be a number from ${least} to ${most === Infinity ? "any" : most}.`);
  }
  return value;
}

function fields() {
  const form = $("make-form").elements, { fields: given, any } = follow.given($("follow"));
  const loop = form.loop.checked, bpm = number(form.bpm, "Tempo");
  const bars = loop && bpm && !any ? number(form.bars, "Bars") : null;
  const asked = {
    prompt: form.prompt.value, model: form.model.value, loop, bpm, bars, ...given,
    context_guidance_scale: any ? number(form.closely, "Strength") : null,
    audio_length_in_s: bars || any ? null : Number(form.seconds.value),  // what is followed says how long
    num_waveforms_per_prompt: number(form.count, "How many") ?? 1, seed: number(form.seed, "Seed"),
    num_inference_steps: number(form.steps, "Steps") ?? usual.num_inference_steps,
    guidance_scale: number(form.guidance, "Follow the description") ?? usual.guidance_scale,
    negative_prompt: form.negative.value, candidates: number(form.candidates, "Keep the best of") ?? 1,
    scheduler: form.scheduler.value, novelty: $("novelty-field").hidden ? null : form.novelty.value || null,
  };
  return Object.fromEntries(Object.entries(asked).filter(([, value]) => value !== null && value !== false));
}

async function make() {
  $("make-error").textContent = "";
  try {
    if (!$("prompt").value.trim()) {
      $("prompt").focus();
      throw new Error("Describe the music first, as in “calm piano with strings”.");
    }
    watch(await api.generate(fields(), follow.given($("follow")).files), $("prompt").value);
  } catch (error) {
    $("make-error").textContent = error.message;
  }
}

// Fills the form with what made a piece.
export function use(recipe) {
  const form = $("make-form").elements;
  const values = {
    prompt: recipe.prompt, seed: recipe.seed, seconds: recipe.seconds, guidance: recipe.guidance, steps: recipe.steps,
    negative: recipe.negative, candidates: recipe.candidates, scheduler: recipe.scheduler, bpm: recipe.bpm ?? "",
    novelty: recipe.novelty ?? "", count: 1,
  };
  for (const [name, value] of Object.entries(values)) if (value !== undefined) form[name].value = value;
  if (models.some((one) => one.name === recipe.model)) form.model.value = recipe.model;
  form.loop.checked = Boolean(recipe.loop);
  chosenModel();
  form.seconds.value = recipe.seconds;
  shown();
  if (recipe.context_kinds?.length) toast("What it follows is not filled in: choose the chords, notes or recording again.");
  $("make").scrollIntoView({ behavior: "smooth" });
  $("prompt").focus();
}

// Shows a job in the queue until it has ended.
export function watch(job, title = "Music") {
  const row = document.createElement("li");
  const label = text("span", title), bar = document.createElement("progress"), state = text("small", "");
  const stop = text("button", "Cancel");
  stop.type = "button";
  stop.className = "quiet";
  stop.onclick = () => { stop.disabled = true; api.cancel(job.id).catch(() => {}); };
  bar.setAttribute("aria-label", `Progress of ${title}`);
  row.append(label, bar, state, stop);
  $("queue").append(row);
  api.follow(job.id, (now) => {
    bar.max = now.steps || 1;
    if (now.status === "queued") bar.removeAttribute("value"); else bar.value = now.step;
    const left = now.seconds_left === null ? "" : `, about ${clock(now.seconds_left, 0)} left`;
    const place = now.position === 1 ? "next" : `number ${now.position} in the queue`;
    state.textContent = now.status === "queued" ? `waiting, ${place}${left}` : `step ${now.step} of ${now.steps}${left}`;
    if (now.status === "done") { row.remove(); onMade(now.results); }
    if (now.status === "cancelled") row.remove();
    if (now.status === "failed") {
      bar.remove();
      state.className = "error";
      state.textContent = now.error;
      stop.textContent = "Dismiss";
      stop.disabled = false;
      stop.onclick = () => row.remove();
    }
  });
}
