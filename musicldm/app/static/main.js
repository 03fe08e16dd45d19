// Starts the page.

import * as api from "./api.js";
import * as keep from "./keep.js";
import * as make from "./make.js";
import * as work from "./work.js";
import { $, remember, remembered, toast } from "./page.js";

function theme(name) {
  document.documentElement.dataset.theme = name;
  remember("theme", name);
}

async function addFile(file) {
  $("status").textContent = `Opening ${file.name} …`;
  try {
    const about = await api.upload(file);
    await keep.refresh();
    await work.open(about.id);
    if (about.recipe?.prompt && about.recipe.kind === undefined) toast("This file carries its recipe: “Use its settings” brings it back.");
  } catch (error) {
    toast(error.message);
  } finally {
    $("status").textContent = "";
  }
}

function dropping() {
  let depth = 0;
  const isFile = (event) => event.dataTransfer?.types.includes("Files");
  addEventListener("dragenter", (event) => { if (isFile(event)) { depth += 1; $("drop").hidden = false; } });
  addEventListener("dragleave", (event) => { if (isFile(event) && --depth <= 0) $("drop").hidden = true; });
  addEventListener("dragover", (event) => { if (isFile(event)) event.preventDefault(); });
  addEventListener("drop", (event) => {
    if (!isFile(event)) return;
    event.preventDefault();
    depth = 0;
    $("drop").hidden = true;
    for (const file of event.dataTransfer.files) addFile(file);
  });
  $("open-file").onchange = () => { for (const file of $("open-file").files) addFile(file); $("open-file").value = ""; };
}

async function begin() {
  await Promise.all([
    keep.start((id) => work.open(id).catch((error) => toast(error.message))),
    make.start(async (made) => {
      await keep.refresh();
      if (made.length) await work.open(made[0]);
      if ($("work").getBoundingClientRect().top > innerHeight) toast("The music is ready, further down.");
    }, work.useModel),
  ]);
  const id = location.hash.slice(1);
  if (id) work.open(id).catch(() => {});
  document.body.dataset.ready = "yes";
}

async function login() {
  $("login").showModal();
  $("login").querySelector("form").onsubmit = async (event) => {
    event.preventDefault();
    try {
      await api.login($("token").value);
      $("login").close();
      await begin();
    } catch (error) {
      $("login-error").textContent = error.message;
    }
  };
}

theme(remembered("theme") ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light"));
$("theme").onclick = () => theme(document.documentElement.dataset.theme === "dark" ? "light" : "dark");
work.start();
dropping();
begin().catch((error) => { if (error.status === 401) login(); else $("status").textContent = error.message; });
