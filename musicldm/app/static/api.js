// The server's interface: every function returns what the server says, or throws an Error with its sentence.

export class ServerError extends Error {
  constructor(status, sentence) { super(sentence); this.status = status; }
}

async function ask(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path, { credentials: "same-origin", ...options });
  } catch {
    throw new ServerError(0, "The server does not answer; is it still running?");
  }
  if (!answer.ok) {
    const sentence = await answer.json().then((body) => body.detail, () => answer.statusText);
    throw new ServerError(answer.status, sentence[0].toUpperCase() + sentence.slice(1));
  }
  return answer.status === 204 ? null : answer.json();
}

const sent = (method, body) => ({
  method, headers: { "Content-Type": "application/json" }, body: JSON.stringify(body),
});

export const models = () => ask("/v1/models");
export const defaults = () => ask("/v1/defaults");
// Posts `fields` as JSON, or as a form with the `files` midi, melody and along as far as they are given.
function post(path, fields, files) {
  if (!Object.keys(files).length) return ask(path, sent("POST", fields));
  const form = new FormData();
  for (const [name, value] of Object.entries({ ...fields, ...files })) form.append(name, value);
  return ask(path, { method: "POST", body: form });
}
export const generate = (fields, files = {}) => post("/v1/generations", fields, files);
export const edit = (fields, files = {}) => post("/v1/edits", fields, files);
export const jobs = () => ask("/v1/jobs");
export const job = (id) => ask(`/v1/jobs/${id}`);
export const cancel = (id) => ask(`/v1/jobs/${id}`, { method: "DELETE" });
export const results = (words, starred) => ask(`/v1/results?${new URLSearchParams({ q: words, starred })}`);
export const result = (id) => ask(`/v1/results/${id}`);
export const family = (id) => ask(`/v1/results/${id}/family`);
export const beats = (id) => ask(`/v1/results/${id}/beats`);
export const change = (id, fields) => ask(`/v1/results/${id}`, sent("PATCH", fields));
export const login = (token) => ask("/v1/session", sent("POST", { token }));
export const audioUrl = (id, format = "wav", download = false) =>
  `/v1/results/${id}/audio?${new URLSearchParams({ format, download })}`;

export function upload(file) {
  const form = new FormData();
  form.append("audio", file);
  return ask("/v1/recordings", { method: "POST", body: form });
}

// Calls `changed` with the job each time that it changes, until it has ended; survives a lost connection.
export async function follow(id, changed) {
  for (;;) {
    try {
      const ended = await new Promise((resolve, reject) => {
        const source = new EventSource(`/v1/jobs/${id}/events`);
        source.addEventListener("job", (event) => {
          const now = JSON.parse(event.data);
          changed(now);
          if (["done", "failed", "cancelled"].includes(now.status)) { source.close(); resolve(true); }
        });
        source.onerror = () => { source.close(); reject(new Error("lost")); };
      });
      if (ended) return;
    } catch {
      await new Promise((wake) => setTimeout(wake, 1000));
      try {
        const now = await job(id);
        changed(now);
        if (["done", "failed", "cancelled"].includes(now.status)) return;
      } catch (error) {
        if (error.status === 404) return;
      }
    }
  }
}
