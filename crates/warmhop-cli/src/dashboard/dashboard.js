// Draws what GET /v1/events tells. Whatever comes from the peer is set as text, never as markup:
// names, paths and error texts are not this page's own.
"use strict";
(() => {
const STALE_MS = 5000, AGAIN_MS = 1500, DRAW_MS = 250, HISTORY = 60;
const byId = (id) => document.getElementById(id);
const SVG_POINTS = { width: 120, height: 28 };
const KINDS = {
  ready: "good", serving: "good", alive: "good",
  starting: "busy", stopping: "busy", draining: "busy", suspect: "busy",
  failed: "bad", gone: "bad",
};
const WORDS = { serve: "served", hop: "hopped", wait: "waited", refuse: "refused", page: "shown a page" };
const WHAT_KINDS = { serve: "good", hop: "hop", wait: "busy", page: "busy", refuse: "bad" };

let token = sessionStorage.getItem("warmhop-token");
let told = null, toldAt = 0, held = false, problem = "";
let recent = [];
const rates = { served: [], hopped: [], received: [] };
let before = null;

function make(name, text, kind) {
  const element = document.createElement(name);
  if (text != null) element.textContent = text;
  if (kind) element.className = kind;
  return element;
}

// Replaces a text only where it changed, so that what is selected stays selected.
function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

// Keeps one child of `parent` for each of `items`, in their order, made once for each key: what has
// the focus or is open stays so.
function keep(parent, items, keyOf, create, update) {
  const known = new Map([...parent.children].map((child) => [child.dataset.key, child]));
  let at = parent.firstElementChild;
  for (const item of items) {
    const key = keyOf(item);
    let child = known.get(key);
    if (child) {
      known.delete(key);
    } else {
      child = create(item);
      child.dataset.key = key;
    }
    if (child === at) at = at.nextElementSibling;
    else parent.insertBefore(child, at);
    update(child, item);
  }
  for (const child of known.values()) child.remove();
}

function pill(state) {
  return make("span", state, `state ${KINDS[state] ?? ""}`);
}

function setPill(element, state) {
  say(element, state);
  element.className = `state ${KINDS[state] ?? ""}`;
}

function span(ms) {
  const seconds = Math.floor(ms / 1000);
  const [d, h, m] = [Math.floor(seconds / 86400), Math.floor(seconds / 3600) % 24, Math.floor(seconds / 60) % 60];
  if (d) return `${d} d ${h} h`;
  if (h) return `${h} h ${m} min`;
  if (m) return `${m} min ${seconds % 60} s`;
  return `${seconds} s`;
}

const duration = (ms) => ms < 10 ? `${ms.toFixed(1)} ms` : ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`;
const perSecond = (rate) => rate >= 100 ? String(Math.round(rate)) : rate >= 10 ? rate.toFixed(1).replace(/\.0$/, "") : rate.toFixed(1).replace(/^0\.0$/, "0").replace(/\.0$/, "");
const count = (number) => number.toLocaleString("en").replaceAll(",", "\u202f");

function measure(status, at) {
  const sum = (of) => status.apps.reduce((all, app) => all + app.requests[of], 0);
  const now = {
    at,
    started: status.peer.incarnation,
    served: sum("served"),
    hopped: sum("hopped"),
    received: status.peers.reduce((all, peer) => all + peer.hops_received, 0),
  };
  if (before && before.started === now.started && now.at > before.at) {
    for (const way of Object.keys(rates)) {
      rates[way].push(Math.max(0, (now[way] - before[way]) * 1000 / (now.at - before.at)));
      if (rates[way].length > HISTORY) rates[way].shift();
    }
  }
  before = now;
}

function drawRates() {
  for (const [way, history] of Object.entries(rates)) {
    // Over about two seconds, so that the figure can be read.
    const latest = history.slice(-4);
    const rate = latest.reduce((all, each) => all + each, 0) / Math.max(1, latest.length);
    say(byId(`rate-${way}`), perSecond(rate));
    const top = Math.max(1, ...history), step = SVG_POINTS.width / (HISTORY - 1);
    const from = HISTORY - history.length;
    const points = history.map((each, i) => `${((from + i) * step).toFixed(1)} ${(SVG_POINTS.height - 1 - each / top * (SVG_POINTS.height - 2)).toFixed(1)}`);
    byId(`spark-${way}`).firstElementChild.setAttribute("d", points.length > 1 ? `M${points.join("L")}` : "");
  }
}

// What each peer tells of each app, this one first.
function copies(status, app) {
  const own = { peer: status.peer.name, here: true, state: app.state, eta: app.eta_ms, elapsed: app.starting_ms, inFlight: app.in_flight, waiting: app.waiting, error: app.error, starts: app.starts };
  const others = status.peers.filter((peer) => peer.state !== "gone").map((peer) => {
    const copy = peer.copies[app.name];
    return { peer: peer.name, here: false, state: peer.apps[app.name] ?? null, eta: copy?.eta_ms, elapsed: null, inFlight: copy?.in_flight ?? 0, waiting: 0, suspect: peer.state === "suspect" };
  });
  return [own, ...others];
}

function drawCell(cell, app, copy) {
  cell.dataset.label = copy.peer;
  cell.classList.toggle("here", copy.here);
  cell.classList.toggle("empty", copy.state === null);
  let state = cell.querySelector(".state");
  if (!state) {
    cell.append(state = pill(""), make("small"));
  }
  setPill(state, copy.state ?? "–");
  if (copy.state === null) state.className = "quiet state-none";
  let bar = cell.querySelector(".bar");
  if (copy.state === "starting") {
    if (!bar) {
      bar = make("div", null, "bar");
      bar.setAttribute("role", "progressbar");
      bar.setAttribute("aria-label", `Start of ${app.name} on ${copy.peer}`);
      bar.append(make("i"));
      bar.began = performance.now() - (copy.elapsed ?? 0);
      bar.shown = 0;
      state.after(bar);
    }
    bar.eta = copy.eta ?? null;
    bar.told = performance.now();
    if (copy.elapsed != null) bar.began = bar.told - copy.elapsed;
  } else if (bar) {
    bar.remove();
  }
  const facts = [];
  if (copy.state === "ready" || copy.inFlight) facts.push(`${copy.inFlight} in flight`);
  if (copy.waiting) facts.push(`${copy.waiting} waiting`);
  if (copy.here && copy.state === "cold" && copy.eta != null) facts.push(`starts in about ${duration(copy.eta)}`);
  if (copy.here && copy.starts) facts.push(copy.starts === 1 ? "1 start" : `${copy.starts} starts`);
  if (copy.suspect) facts.push("not heard from");
  if (copy.state !== "starting") say(cell.querySelector("small"), facts.join(", "));
  let error = cell.querySelector(".error");
  if (copy.error && copy.state !== "ready") {
    if (!error) cell.append(error = make("span", "", "error"));
    say(error, copy.error);
  } else if (error) {
    error.remove();
  }
  if (!copy.here) return;
  let acts = cell.querySelector(".acts");
  if (!acts) {
    cell.append(acts = make("div", null, "acts"));
    const button = make("button");
    button.type = "button";
    button.addEventListener("click", () => act(app.name, button));
    acts.append(button);
  }
  const up = copy.state === "ready" || copy.state === "starting";
  const button = acts.firstElementChild;
  button.dataset.act = up ? "stop" : "start";
  say(button, up ? "Stop" : "Start");
  button.setAttribute("aria-label", `${up ? "Stop" : "Start"} ${app.name} on this peer`);
}

// Between two events the bars go on by themselves.
function drawProgress() {
  for (const bar of document.querySelectorAll(".bar")) {
    const now = performance.now(), small = bar.parentElement.querySelector("small");
    const unknown = bar.eta === null;
    bar.classList.toggle("unknown", unknown);
    if (unknown) {
      bar.removeAttribute("aria-valuenow");
      bar.firstElementChild.style.width = "";
      say(small, `for ${span(now - bar.began)}; its first start here`);
      continue;
    }
    const left = Math.max(0, bar.eta - (now - bar.told)), gone = now - bar.began;
    bar.shown = Math.max(bar.shown, Math.min(97, 100 * gone / Math.max(1, gone + left)));
    bar.firstElementChild.style.width = `${bar.shown}%`;
    bar.setAttribute("aria-valuenow", String(Math.round(bar.shown)));
    say(small, left < 100 ? "any moment now" : `ready in ${(left / 1000).toFixed(1)} s`);
  }
}

function drawApps(status) {
  const table = byId("apps"), names = [status.peer.name, ...status.peers.filter((peer) => peer.state !== "gone").map((peer) => peer.name)];
  const shape = names.join("\n");
  if (table.dataset.shape !== shape) {
    table.dataset.shape = shape;
    const row = document.createElement("tr");
    row.append(make("th", "App"));
    row.firstElementChild.scope = "col";
    names.forEach((name, i) => {
      const head = make("th", i === 0 ? `${name} (this peer)` : name, i === 0 ? "here" : "");
      head.scope = "col";
      row.append(head);
    });
    table.tHead.replaceChildren(row);
    table.tBodies[0].replaceChildren();
  }
  keep(table.tBodies[0], status.apps, (app) => app.name, (app) => {
    const row = document.createElement("tr"), head = make("th", app.name);
    head.scope = "row";
    head.append(make("small", ` ${app.session === "none" ? "no sessions" : `${app.session} sessions`}`));
    row.append(head);
    names.forEach(() => row.append(make("td")));
    return row;
  }, (row, app) => copies(status, app).forEach((copy, i) => drawCell(row.cells[i + 1], app, copy)));
}

function drawPeers(status) {
  const own = { ...status.peer, here: true, http: status.peer.http.join(", "), rtt_us: null, hops_sent: null, hops_received: null };
  const rows = [own, ...status.peers];
  const labels = ["", "State", "Round trip", "Hops sent", "Hops received", "Zone", "Front door", "Mesh"];
  keep(byId("peers").tBodies[0], rows, (peer) => peer.name, () => {
    const row = document.createElement("tr"), head = make("th");
    head.scope = "row";
    row.append(head);
    labels.slice(1).forEach((label, i) => {
      const cell = make("td", null, i > 0 && i < 4 ? "number" : "");
      cell.dataset.label = label;
      row.append(cell);
      cell.append(i === 0 ? pill("") : make("span"));
    });
    return row;
  }, (row, peer) => {
    say(row.cells[0], peer.here ? `${peer.name} (this peer)` : peer.name);
    setPill(row.cells[1].firstElementChild, peer.state);
    const texts = [
      peer.rtt_us == null ? "" : `${(peer.rtt_us / 1000).toFixed(1)} ms`,
      peer.hops_sent == null ? "" : count(peer.hops_sent),
      peer.hops_received == null ? "" : count(peer.hops_received),
      peer.zone ?? "", peer.http ?? "", peer.mesh,
    ];
    texts.forEach((text, i) => {
      say(row.cells[i + 2].firstElementChild, text);
      row.cells[i + 2].classList.toggle("empty", text === "");
    });
  });
}

// The decision that a request came to.
function decision(trace) {
  const steps = trace.steps.filter((step) => WORDS[step.what]);
  return steps.at(-1) ?? trace.steps.at(-1) ?? { what: "", why: "" };
}

function words(trace, step) {
  if (trace.role === "hop") return "hopped in";
  if (step.what === "hop" && trace.served_by) return `to ${trace.served_by}`;
  return WORDS[step.what] ?? step.what;
}

function drawSteps(box, trace) {
  const text = JSON.stringify(trace.steps) + trace.status;
  if (box.text === text) return;
  box.text = text;
  const parts = trace.steps.flatMap((step) => {
    const line = make("div", null, "step");
    const right = make("div");
    right.append(make("strong", step.what), document.createTextNode(` ${step.why}`));
    line.append(make("span", duration(step.after_us / 1000)), right);
    if (!step.candidates?.length) return [line];
    const list = document.createElement("ul");
    for (const peer of step.candidates) list.append(make("li", `${peer.peer}: ${peer.state}, ${peer.in_flight} in flight, heard ${duration(peer.age_ms)} ago`));
    return [line, list];
  });
  const facts = [`id ${trace.id}`];
  if (trace.session) facts.push(`session ${trace.session}`);
  if (trace.served_by) facts.push(`served by ${trace.served_by}`);
  parts.push(make("p", facts.join(" · "), "quiet"));
  box.replaceChildren(...parts);
}

function drawRecent() {
  const wanted = byId("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  const shown = recent.filter((trace) => {
    const step = decision(trace);
    const text = [trace.app, trace.request, trace.served_by, trace.status, step.why, words(trace, step), trace.id, trace.session].join(" ").toLowerCase();
    return wanted.every((word) => text.includes(word));
  });
  keep(byId("recent"), shown, (trace) => `${trace.role} ${trace.id}`, () => {
    const item = document.createElement("li"), details = make("details"), summary = make("summary");
    for (const part of ["at", "what", "request", "why", "result"]) summary.append(make("span", "", part));
    details.append(summary, make("div", null, "steps"));
    details.addEventListener("toggle", () => { if (details.open) drawSteps(details.lastElementChild, item.trace); });
    item.append(details);
    return item;
  }, (item, trace) => {
    item.trace = trace;
    const details = item.firstElementChild, [at, what, request, why, result] = details.firstElementChild.children;
    const step = decision(trace);
    const time = new Date(trace.at_unix_ms);
    say(at, `${time.toLocaleTimeString("en-GB")}.${String(Math.floor(time.getMilliseconds() / 100))}`);
    say(what, words(trace, step));
    what.className = `what ${trace.role === "hop" ? "" : WHAT_KINDS[step.what] ?? ""}`;
    say(request, trace.app ? `${trace.request}` : `${trace.request} (no app)`);
    request.title = trace.app ? `${trace.app}: ${trace.request}` : trace.request;
    say(why, step.why);
    why.title = step.why;
    say(result, [trace.status ?? "…", trace.head_ms == null ? null : duration(trace.head_ms)].filter((part) => part != null).join(" · "));
    if (details.open) drawSteps(details.lastElementChild, trace);
  });
  byId("none").hidden = shown.length > 0;
  say(byId("none"), recent.length ? "None of the recent requests matches the filter." : "Requests show here as they arrive.");
}

function drawLine() {
  const line = byId("line"), age = performance.now() - toldAt;
  const stale = told === null ? problem !== "" : age > STALE_MS;
  document.body.classList.toggle("stale", stale && told !== null);
  line.className = `line ${stale ? "lost" : told ? "live" : ""}`;
  if (told === null) say(line, problem ? `No answer: ${problem}. Trying again.` : "Connecting …");
  else if (stale) say(line, `Connection lost; this is what it was ${span(age)} ago. Trying again.`);
  else say(line, "Live");
}

function draw(news) {
  const { status } = news;
  told = status;
  toldAt = performance.now();
  measure(status, toldAt);
  document.title = `${status.peer.name} – warmhop`;
  say(byId("name"), status.peer.name);
  setPill(byId("state"), status.peer.state);
  const zone = status.peer.zone ? `, zone ${status.peer.zone}` : "";
  say(byId("about"), `up ${span(status.peer.uptime_ms)}${zone}, version ${status.peer.version}`);
  say(byId("owned"), count(status.sessions.owned));
  say(byId("copies"), count(status.sessions.copies));
  say(byId("takeovers"), count(status.takeovers));
  drawRates();
  drawApps(status);
  drawPeers(status);
  drawProgress();
  if (!held) {
    recent = news.recent;
    drawRecent();
  }
  byId("ask").hidden = true;
  byId("main").hidden = false;
  drawLine();
}

function headers() {
  return token ? { Authorization: `Bearer ${token}` } : {};
}

async function act(app, button) {
  button.disabled = true;
  try {
    const reply = await fetch(`/v1/apps/${encodeURIComponent(app)}/${button.dataset.act}`, { method: "POST", headers: headers() });
    if (!reply.ok) alert((await reply.json()).detail ?? reply.statusText);
  } catch (error) {
    alert(error.message);
  }
  button.disabled = false;
}

// EventSource cannot send the token, so the stream (text/event-stream) is read by hand.
async function listen() {
  const reply = await fetch("/v1/events", { headers: { ...headers(), Accept: "text/event-stream" }, cache: "no-store" });
  if (reply.status === 401) {
    byId("ask").hidden = false;
    byId("main").hidden = true;
    if (document.activeElement === document.body) byId("token").focus();
    throw new Error("this peer asks for its admin token");
  }
  if (!reply.ok) throw new Error((await reply.json()).detail ?? reply.statusText);
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let text = ""; ;) {
    const { value, done } = await reader.read();
    if (done) throw new Error("the peer closed the stream");
    text += value;
    const events = text.split("\n\n");
    text = events.pop();
    for (const event of events) {
      const data = event.split("\n").filter((line) => line.startsWith("data: ")).map((line) => line.slice(6)).join("\n");
      if (data) draw(JSON.parse(data));
    }
  }
}

async function forEver() {
  for (;;) {
    try {
      await listen();
    } catch (error) {
      problem = error.message;
    }
    drawLine();
    await new Promise((resolve) => { setTimeout(resolve, AGAIN_MS); });
  }
}

byId("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  token = byId("token").value;
  sessionStorage.setItem("warmhop-token", token);
});
byId("filter").addEventListener("input", drawRecent);
byId("hold").addEventListener("click", () => {
  held = !held;
  byId("hold").setAttribute("aria-pressed", String(held));
});
setInterval(() => { drawProgress(); drawLine(); }, DRAW_MS);
forEver();
})();
