"use strict";
const $ = (id) => document.getElementById(id);
const state = { job: null, chat: [], stop: null, wasReady: false };

const headers = (more = {}) => {
  const key = $("key").value.trim();
  return key ? { ...more, authorization: "Bearer " + key } : more;
};
const size = (bytes) => {
  if (bytes >= 1073741824) return (bytes / 1073741824).toFixed(2) + " GiB";
  return (bytes / 1048576).toFixed(1) + " MiB";
};
const percent = (share) => (share * 100).toFixed(1) + " %";

async function call(method, path, body) {
  const more = body === undefined ? {} : { "content-type": "application/json" };
  const response = await fetch(path, {
    method, headers: headers(more), body: body === undefined ? undefined : JSON.stringify(body),
  });
  if (response.status === 204) return null;
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.detail || answer.error?.message || "error " + response.status);
  return answer;
}

/* Reads server-sent events: EventSource cannot send a key. */
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    held += value;
    let end;
    while ((end = held.indexOf("\n\n")) >= 0) {
      const event = { name: "message", data: "" };
      for (const line of held.slice(0, end).split("\n")) {
        if (line.startsWith("data:")) event.data += line.slice(5).trim();
        if (line.startsWith("event:")) event.name = line.slice(6).trim();
      }
      held = held.slice(end + 2);
      if (event.data) yield event;
    }
  }
}

function facts(rows) {
  $("facts").replaceChildren(...rows.flatMap(([name, value]) => {
    const dt = document.createElement("dt");
    const dd = document.createElement("dd");
    dt.textContent = name;
    dd.textContent = value;
    return [dt, dd];
  }));
}

function showMemory(memory) {
  const total = memory.total_bytes || 1;
  // Never so little that it cannot be seen.
  const width = (bytes) => String(Math.min(1000, Math.max(4, (bytes / total) * 1000)));
  for (const [name, bytes] of [["available", memory.available_bytes], ["budget", memory.budget_bytes],
    ["used", memory.rss_bytes]]) {
    $("bar-" + name).setAttribute("width", width(bytes));
    $(name).textContent = size(bytes);
  }
  $("total").textContent = size(total);
  const gauge = $("gauge");
  gauge.setAttribute("aria-valuemax", memory.budget_bytes);
  gauge.setAttribute("aria-valuenow", memory.rss_bytes);
  gauge.setAttribute("aria-valuetext", size(memory.rss_bytes) + " used of a budget of " + size(memory.budget_bytes));
  const pressure = memory.pressure_some_avg10;
  $("pressure").textContent = pressure === null ? "" :
    "Tasks waited for memory " + pressure.toFixed(1) + " % of the last 10 s.";
}

function showStatus(status) {
  const readiness = status.readiness;
  $("state").dataset.state = readiness.state;
  $("state").textContent = readiness.message ? readiness.state + ": " + readiness.message : readiness.state;
  const rows = [["Version", status.version], ["Threads", status.n_threads],
    ["Requests", status.running + " at work, " + status.queued + " waiting"]];
  if (status.model) {
    const model = status.model.model;
    rows.unshift(["Model", (model.name || model.id) + " (" + size(model.bytes) + ")"]);
    rows.push(["Context", status.model.context_len + " tokens, keys and values as " + status.model.kv_dtype]);
    $("plan").textContent = status.model.plan ? status.model.plan.reason : "The model is served as it is.";
  } else {
    $("plan").textContent = "No model is served.";
  }
  facts(rows);
  const job = status.active_job ?? (readiness.state === "pruning" ? readiness.job : null);
  if (job !== null && job !== undefined && state.job !== job) follow(job);
  const isReady = readiness.state === "ready";
  if (isReady !== state.wasReady) {
    state.wasReady = isReady;
    showModels();
  }
}

async function showModels() {
  try {
    const { models } = await call("GET", "/api/v1/models");
    $("models").replaceChildren(...models.map((model) => {
      const row = document.createElement("tr");
      const cells = [model.name || model.id.slice(0, 12), size(model.bytes),
        model.ratio === null ? "–" : percent(model.ratio)];
      for (const text of cells) row.insertCell().textContent = text;
      const served = row.insertCell();
      if (model.active) {
        served.textContent = "yes";
      } else {
        served.append(button("Serve", () => act("POST", "/api/v1/models/" + model.id + "/activate")));
        if (model.kind === "pruned") {
          served.append(button("Delete", () => {
            if (confirm("Delete " + (model.name || model.id) + "?")) act("DELETE", "/api/v1/models/" + model.id);
          }));
        }
      }
      return row;
    }));
  } catch (error) {
    $("models").replaceChildren();
  }
}

function button(text, action) {
  const made = document.createElement("button");
  made.type = "button";
  made.textContent = text;
  made.addEventListener("click", action);
  return made;
}

async function act(method, path) {
  try {
    $("plan-answer").textContent = "…";
    await call(method, path);
    $("plan-answer").textContent = "Done.";
  } catch (error) {
    $("plan-answer").textContent = error.message;
  }
  showModels();
  refresh();
}

/* Live progress of a job, with a bar for each layer. */
async function follow(job) {
  state.job = job;
  $("job").hidden = false;
  $("layers").replaceChildren();
  try {
    const response = await fetch("/api/v1/jobs/" + job + "/events", { headers: headers() });
    if (!response.ok) throw new Error("error " + response.status);
    for await (const event of events(response)) {
      const data = JSON.parse(event.data);
      if (event.name === "progress") showProgress(data);
      if (event.name === "planned") $("plan-answer").textContent = data.reason;
      if (event.name === "state") showJob(data);
    }
  } catch (error) {
    $("job-text").textContent = error.message;
    state.job = null;
  }
  showModels();
  refresh();
}

function showJob(job) {
  const text = { queued: "Waiting.", running: "Working.", succeeded: "Done.", cancelled: "Cancelled." };
  $("job-text").textContent = "Job " + job.id + ": " + (text[job.state] || "Failed: " + job.error);
  $("job").dataset.state = job.state;
  const isOver = !["queued", "running"].includes(job.state);
  $("cancel-job").hidden = isOver;
  if (job.state === "succeeded") {
    // What was served with it says so itself.
    $("plan-answer").textContent = "";
    $("job-progress").value = 1;
    for (const bar of $("layers").querySelectorAll("progress")) bar.value = 1;
  }
}

function showProgress(progress) {
  const layers = $("layers");
  if (layers.children.length !== progress.n_layers) {
    layers.replaceChildren(...Array.from({ length: progress.n_layers }, (_, idx) => {
      const item = document.createElement("li");
      const label = document.createElement("label");
      const bar = document.createElement("progress");
      bar.max = 1;
      bar.value = 0;
      label.append("layer " + (idx + 1), bar);
      item.append(label);
      return item;
    }));
  }
  if (progress.layer_idx !== null) {
    [...layers.querySelectorAll("progress")].forEach((bar, idx) => {
      if (idx < progress.layer_idx) bar.value = 1;
      else if (idx === progress.layer_idx) bar.removeAttribute("value");
      else bar.value = 0;
    });
  }
  $("job-progress").value = progress.done;
  const layer = progress.layer_idx === null ? "" : ", layer " + (progress.layer_idx + 1) + " of " + progress.n_layers;
  const eta = progress.eta_s === null ? "" : ", " + Math.round(progress.eta_s) + " s left";
  const loss = progress.loss === null ? "" : ", held-out loss " + progress.loss.toFixed(3);
  $("job-text").textContent = progress.stage + layer + eta + loss + ", memory " + size(progress.rss_bytes)
    + " (peak " + size(progress.rss_peak_bytes) + ")";
}

function turn(role, text) {
  const made = document.createElement("div");
  made.className = "turn " + role;
  made.textContent = text;
  $("log").append(made);
  made.scrollIntoView({ block: "nearest" });
  return made;
}

async function ask(event) {
  event.preventDefault();
  const question = $("question").value.trim();
  if (!question || state.stop) return;
  state.chat.push({ role: "user", content: question });
  turn("user", question);
  $("question").value = "";
  const answer = turn("assistant", "");
  state.stop = new AbortController();
  $("ask").disabled = true;
  $("stop").disabled = false;
  $("speed").textContent = "";
  try {
    const response = await fetch("/v1/chat/completions", {
      method: "POST",
      headers: headers({ "content-type": "application/json" }),
      body: JSON.stringify({ messages: state.chat, stream: true, temperature: 0.7, max_completion_tokens: 512 }),
      signal: state.stop.signal,
    });
    if (!response.ok) throw new Error((await response.json()).error?.message || "error " + response.status);
    for await (const event of events(response)) {
      if (event.data === "[DONE]") break;
      const chunk = JSON.parse(event.data);
      if (chunk.error) throw new Error(chunk.error.message);
      answer.textContent += chunk.choices[0]?.delta.content || "";
      answer.scrollIntoView({ block: "nearest" });
      if (chunk.timings) {
        $("speed").textContent = chunk.timings.predicted_per_second.toFixed(1) + " tokens/s, first token after "
          + Math.round(chunk.timings.ttft_ms) + " ms";
      }
    }
  } catch (error) {
    if (error.name !== "AbortError") turn("error", error.message);
  }
  if (answer.textContent) state.chat.push({ role: "assistant", content: answer.textContent });
  else state.chat.pop();
  state.stop = null;
  $("ask").disabled = false;
  $("stop").disabled = true;
}

const budget = () => {
  const text = $("prune-budget").value.trim();
  return text ? { memory_budget: text } : {};
};

$("plan-button").addEventListener("click", async () => {
  try {
    $("plan-answer").textContent = (await call("POST", "/api/v1/plan", budget())).reason;
  } catch (error) {
    $("plan-answer").textContent = error.message;
  }
});
$("prune-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  try {
    const job = await call("POST", "/api/v1/prune", { ...budget(), activate: true });
    follow(job.id);
  } catch (error) {
    $("plan-answer").textContent = error.message;
  }
});
$("cancel-job").addEventListener("click", () => act("DELETE", "/api/v1/jobs/" + state.job));
$("chat-form").addEventListener("submit", ask);
$("stop").addEventListener("click", () => state.stop?.abort());
$("clear").addEventListener("click", () => { state.chat = []; $("log").replaceChildren(); });
$("question").addEventListener("keydown", (event) => {
  // Enter inside of an input method chooses a word.
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) ask(event);
});

async function refresh() {
  try {
    const [status, memory] = await Promise.all([call("GET", "/api/v1/status"), call("GET", "/api/v1/memory")]);
    showMemory(memory);
    showStatus(status);
  } catch (error) {
    $("state").dataset.state = "failed";
    $("state").textContent = error.message;
  }
}

refresh();
showModels();
setInterval(refresh, 2000);
