// Draws what GET /v1/events tells. Whatever comes from the peer is set as text, never as markup:
// names, paths and error texts are not this page's own.
"use strict";
(() => {
// A peer tells twice a second: one that has said nothing for STALE_MS is gone, or its connection is.
const STALE_MS = 5000, AGAIN_MS = 1500, DRAW_MS = 250, HISTORY = 60;
// How long a request that was served still counts as one that may not be the last.
const LATELY_MS = 10_000;
// How wide a column of the matrix is at least, and what else it takes.
const COLUMN_PX = 152, FIRST_COLUMN_PX = 224, NAMES_MAX = 4;
const byId = (id) => document.getElementById(id);
const SVG_POINTS = { width: 120, height: 28 };
const KINDS = {
  ready: "good", serving: "good", alive: "good",
  starting: "busy", stopping: "busy", draining: "busy", drained: "busy", suspect: "busy",
  failed: "bad", gone: "bad", unlinked: "bad", "cold, failed": "bad", "no answer": "bad",
};
const WORDS = { serve: "served", hop: "hopped", forward: "forwarded", wait: "waited", refuse: "refused", page: "shown a page", problem: "problem", "cut-off": "broke off" };
const WHAT_KINDS = { serve: "good", hop: "hop", forward: "hop", wait: "busy", page: "busy", refuse: "bad", problem: "bad", "cut-off": "bad" };
// What a button does to the copy here.
const ACTS = {
  start: "Start a copy on this peer",
  stop: "Stop the copy on this peer; the next request starts it again",
  restart: "Start a new copy beside this one, which serves until the new one is ready",
  pause: "Stop the copy on this peer and start none, whatever is asked, until it is resumed",
  resume: "Let copies start on this peer again",
};
// In which order the states of copies are listed.
const ORDER = ["ready", "starting", "stopping", "failed", "paused", "cold"];

let token = sessionStorage.getItem("warmhop-token");
// The peer's last status, when it came, and what time it was there.
let current = null, statusAt = 0, peerTime = 0;
// Whether it tells at this moment; what is wrong otherwise.
let live = false, problem = "", rejected = false;
// The stream that is listened to, when it was last heard, and what ends the pause before the next.
let stream = null, heardAt = 0, wake = () => {};
let held = false, recent = [];
const lately = new Map();
const rates = { served: [], hopped: [], received: [] };
let before = null;
// The hops between all peers: how many each has sent, and how many a second that is.
const sent = new Map(), hopRates = new Map();
const OTHERS_EVERY_MS = 2000, OTHERS_MAX = 24;
const HISTORY_EVERY_MS = 5000;
let history = null;

// Without what shows nothing itself but changes how its neighbours are read, such as a turn of the
// direction; line breaks stay.
const clean = (text) => String(text).replace(/[\p{Cc}\p{Cf}\u2028\u2029]/gu, (sign) => sign === "\n" ? sign : "\ufffd");

function make(name, text, kind) {
  const element = document.createElement(name);
  if (text != null) element.textContent = clean(text);
  if (kind) element.className = kind;
  return element;
}

// Replaces a text only where it changed, so that what is selected stays selected.
function say(element, text) {
  const cleaned = clean(text);
  if (element.textContent !== cleaned) element.textContent = cleaned;
}

// Keeps one child of `parent` for each of `items`, in their order, made once for each key: what has
// the focus or is open stays so. None is moved but where the order changed, for it would lose both.
function keep(parent, items, keyOf, create, update) {
  const known = new Map([...parent.children].map((child) => [child.dataset.key, child]));
  const wanted = new Set(items.map(keyOf));
  for (const [key, child] of known) if (!wanted.has(key)) child.remove();
  let at = parent.firstElementChild;
  for (const item of items) {
    const key = keyOf(item);
    let child = known.get(key);
    if (!child) {
      child = create(item);
      child.dataset.key = key;
    }
    if (child === at) at = at.nextElementSibling;
    else parent.insertBefore(child, at);
    update(child, item);
  }
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
const ago = (ms) => {
  const seconds = Math.max(0, Math.floor(ms / 1000));
  if (seconds < 60) return `${seconds} s ago`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ago`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h ago`;
  return `${Math.floor(seconds / 86400)} d ago`;
};
const count = (number) => number.toLocaleString("en").replaceAll(",", "\u202f");

// By the peer's own clock: whatever kept this page or the answer, it counted for as long as its
// uptime says.
function measure(status) {
  const sum = (of) => status.apps.reduce((all, app) => all + app.requests[of], 0);
  const now = {
    at: status.peer.uptime_ms,
    started: status.peer.incarnation,
    served: sum("served"),
    hopped: sum("hopped"),
    received: status.peers.reduce((all, peer) => all + peer.hops_received, 0),
  };
  if (before && before.started === now.started) {
    if (now.at <= before.at) return;
    for (const way of Object.keys(rates)) {
      rates[way].push(Math.max(0, (now[way] - before[way]) * 1000 / (now.at - before.at)));
      if (rates[way].length > HISTORY) rates[way].shift();
    }
  }
  before = now;
  for (const app of status.apps) {
    const known = lately.get(app.name);
    if (!known || app.requests.served !== known.served) {
      lately.set(app.name, { served: app.requests.served, at: known ? statusAt : -Infinity });
    }
  }
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

// The hops that a peer has sent, by its own clock.
function measureHops(status) {
  const from = status.peer.name, now = { at: status.peer.uptime_ms, started: status.peer.incarnation, to: new Map(status.peers.map((peer) => [peer.name, peer.hops_sent])) };
  const earlier = sent.get(from);
  if (earlier && earlier.started === now.started && now.at - earlier.at < OTHERS_EVERY_MS * .7) return;
  sent.set(from, now);
  for (const [to, count] of now.to) {
    const grown = earlier && earlier.started === now.started ? count - (earlier.to.get(to) ?? count) : 0;
    hopRates.set(`${from} ${to}`, { from, to, rate: grown > 0 ? grown * 1000 / (now.at - earlier.at) : 0, ever: count > 0 });
  }
}

// What each of the peers tells at a path, without those that do not answer. All are asked through
// this peer, so that hops between two others show as well.
async function ask(path, within, others) {
  const names = others.filter((peer) => peer.state === "alive" || peer.state === "draining").slice(0, OTHERS_MAX).map((peer) => peer.name);
  const paths = names.map((name) => `/v1/peers/${encodeURIComponent(name)}${path}`);
  const answers = await Promise.all([path, ...paths].map(async (each) => {
    try {
      const reply = await fetch(each, { headers: headers(), signal: AbortSignal.timeout(within) });
      return reply.ok ? await reply.json() : null;
    } catch {
      return null;
    }
  }));
  return answers.filter((each) => each !== null);
}

async function askOthers() {
  if (!live || document.hidden || !current) return;
  for (const status of await ask("/v1/status", OTHERS_EVERY_MS, current.peers)) measureHops(status);
}

async function askHistory() {
  if (!live || document.hidden || !current) return;
  const all = await ask("/v1/history", HISTORY_EVERY_MS, current.peers);
  if (!all.length) return;
  history = { ...mergeHistories(all), peers: all.length };
  drawHistory();
}

// A line over the bins, or bars where `kind` says so; what is `null` leaves a gap.
function drawSpark(svg, values, kind) {
  const { width, height } = SVG_POINTS, step = width / values.length;
  const top = Math.max(...values.filter((value) => value !== null && value !== Infinity), 0) || 1;
  const up = (value) => (height - 1 - Math.min(1, value / top) * (height - 2)).toFixed(1);
  let path = "";
  values.forEach((value, i) => {
    const x = i * step;
    if (kind === "bars") {
      if (value > 0) path += `M${x.toFixed(1)} ${height}V${up(value)}H${(x + step).toFixed(1)}V${height}Z`;
    } else if (value !== null) {
      path += `${i && values[i - 1] !== null ? "L" : "M"}${x.toFixed(1)} ${up(value)}H${(x + step).toFixed(1)}`;
    }
  });
  svg.firstElementChild.setAttribute("d", path);
}

const within = (ms) => ms == null ? "–" : ms === Infinity ? `over ${duration(history.bounds.at(-1))}` : duration(ms);

// Every app's requests over the last ten minutes, wherever in the mesh clients sent them.
function drawHistory() {
  const { width, bounds, apps, peers } = history;
  const rows = [...apps].map(([name, bins]) => ({ name, ...traffic(bins, width, bounds) }));
  rows.sort((a, b) => b.requests - a.requests || (a.name < b.name ? -1 : 1));
  say(byId("traffic-of"), `of clients at ${peers === 1 ? "this peer" : `${peers} peers`}`);
  const labels = ["", "Requests a second", "Errors", "p50", "p99"];
  keep(byId("traffic").tBodies[0], rows, (row) => row.name, ({ name }) => {
    const row = document.createElement("tr"), head = make("th", name);
    head.scope = "row";
    row.append(head);
    labels.slice(1).forEach((label, i) => {
      const cell = make("td");
      cell.dataset.label = label;
      cell.append(make("span"));
      if (i !== 2) {
        const svg = byId("spark-served").cloneNode(true);
        svg.removeAttribute("id");
        svg.setAttribute("class", i === 1 ? "spark errors" : "spark");
        cell.append(svg);
      }
      row.append(cell);
    });
    return row;
  }, (row, app) => {
    const share = app.requests ? 100 * app.failed / app.requests : 0, failed = Math.round(app.failed);
    const errors = !app.requests ? "–" : !failed ? "0" : `${share < .1 ? "under 0.1" : share.toFixed(1).replace(/\.0$/, "")} % (${count(failed)})`;
    const texts = [perSecond(app.lately), errors, within(app.p50), within(app.p99)];
    texts.forEach((text, i) => say(row.cells[i + 1].firstElementChild, text));
    row.cells[2].firstElementChild.className = failed ? "errors" : "";
    drawSpark(row.cells[1].lastElementChild, app.rates);
    drawSpark(row.cells[2].lastElementChild, app.shares, "bars");
    drawSpark(row.cells[4].lastElementChild, app.slowest);
  });
}

function drawPicture() {
  if (!current) return;
  const list = columns(current);
  const all = allApps(current);
  const peers = list.map((column) => {
    const state = column.here ? (live ? current.peer.state : "no answer") : column.peer.state;
    const apps = all.map((app) => ({ app, copy: copyOf(column, app) })).filter(({ copy }) => copy.state !== null).map(({ app, copy }) => {
      const gone = copy.elapsed ?? 0, whole = gone + (copy.eta ?? 0);
      return { name: app.name, state: copy.state, kind: KINDS[copy.state] ?? "", progress: whole > 0 ? Math.min(.97, gone / whole) : null };
    });
    const flying = all.reduce((sum, app) => sum + copyOf(column, app).inFlight, 0);
    const alone = column.here && state === "serving" && isAlone(current);
    const note = alone ? "no seed reached" : state !== "alive" && state !== "serving" ? state : flying ? `${flying} in flight` : "";
    return { name: clean(column.name), here: column.here, kind: alone ? "bad" : KINDS[state] ?? "", note, apps };
  });
  const names = new Set(peers.map((peer) => peer.name));
  const hops = [...hopRates.values()].filter((hop) => hop.ever && names.has(hop.from) && names.has(hop.to));
  drawMesh(byId("mesh"), { peers, hops });
  const busy = hops.filter((hop) => hop.rate > 0).map((hop) => `${hop.from} to ${hop.to} ${perSecond(hop.rate)} a second`);
  const label = `${peers.length} ${peers.length === 1 ? "peer" : "peers"}. ${busy.length ? `Hops: ${busy.join(", ")}` : "No hops at the moment"}.`;
  if (byId("mesh").getAttribute("aria-label") !== label) byId("mesh").setAttribute("aria-label", label);
}

// The peers that may have a copy, this one first.
function columns(status) {
  const others = status.peers.filter((peer) => peer.state !== "gone");
  return [{ key: "here", name: status.peer.name, here: true }, ...others.map((peer) => ({ key: `peer ${peer.name}`, name: peer.name, peer }))];
}

// What a peer tells of an app; `state` is null where it has none of that name.
function copyOf(column, app) {
  if (!column.here) {
    const copy = column.peer.copies[app.name];
    return { peer: column.name, state: column.peer.apps[app.name] ?? null, eta: copy?.eta_ms ?? null, inFlight: copy?.in_flight ?? 0, version: copy?.version, waiting: 0, suspect: column.peer.state === "suspect" };
  }
  const own = app.own;
  if (!own) return { peer: column.name, here: true, state: null, inFlight: 0, waiting: 0 };
  // How long its first start here takes is known from the others, where one of them had a start.
  const elsewhere = own.state === "starting" && own.eta_ms == null ? app.startTakes : null;
  const eta = own.eta_ms ?? (elsewhere == null ? null : Math.max(100, elsewhere - (own.starting_ms ?? 0)));
  const failed = own.state === "cold" && own.error != null;
  return { peer: column.name, here: true, state: failed ? "cold, failed" : own.state, eta, elapsed: own.starting_ms, inFlight: own.in_flight, waiting: own.waiting, error: own.error, starts: own.starts, version: own.version, differs: own.differs_on ?? [] };
}

function drawCopy(box, app, copy) {
  let state = box.querySelector(".state");
  if (!state) box.append(state = pill(""), make("small"));
  const nothing = copy.here ? "not here" : "–";
  setPill(state, copy.state ?? nothing);
  if (copy.state === null) state.className = "state none";
  let bar = box.querySelector(".bar");
  if (copy.state === "starting") {
    if (!bar) {
      bar = make("div", null, "bar");
      bar.setAttribute("role", "progressbar");
      bar.setAttribute("aria-label", clean(`Start of ${app.name} on ${copy.peer}`));
      bar.append(make("i"));
      bar.began = performance.now() - (copy.elapsed ?? 0);
      bar.shown = 0;
      (box.querySelector(".acts") ?? state).after(bar);
    }
    bar.eta = copy.eta ?? null;
    bar.here = copy.here;
    bar.since = performance.now();
    if (copy.elapsed != null) bar.began = bar.since - copy.elapsed;
  } else if (bar) {
    bar.remove();
  }
  const facts = [];
  if (copy.state === "ready" || copy.inFlight) facts.push(`${copy.inFlight} in flight`);
  if (copy.waiting) facts.push(`${copy.waiting} waiting`);
  if (copy.here && copy.state === "cold" && copy.eta != null) facts.push(`starts in about ${duration(copy.eta)}`);
  if (copy.here && copy.starts) facts.push(copy.starts === 1 ? "1 start" : `${copy.starts} starts`);
  if (copy.version && copy.state !== null) facts.push(`version ${copy.version}`);
  if (copy.suspect) facts.push("not heard from");
  if (copy.state !== "starting") say(box.querySelector("small"), facts.join(", "));
}

function drawOwn(cell, app, copy) {
  drawCopy(cell, app, copy);
  let error = cell.querySelector(".error");
  const differs = copy.differs?.length > 0 ? `configured differently on ${copy.differs.join(", ")}` : null;
  const trouble = copy.error ?? differs;
  if (trouble) {
    if (!error) cell.append(error = make("span", "", "error"));
    say(error, trouble);
  } else if (error) {
    error.remove();
  }
  let acts = cell.querySelector(".acts");
  if (copy.state === null) {
    acts?.remove();
    return;
  }
  if (!acts) cell.querySelector(".state").after(acts = make("span", null, "acts"));
  const up = copy.state === "ready" || copy.state === "starting", paused = copy.state === "paused";
  // The first stays the same button whatever it does, and keeps the focus.
  const wanted = [{ key: "first", does: paused ? "resume" : up ? "stop" : "start" }];
  if (copy.state === "ready") wanted.push({ key: "restart", does: "restart" });
  if (!paused) wanted.push({ key: "pause", does: "pause" });
  keep(acts, wanted, ({ key }) => key, () => {
    const button = make("button");
    button.type = "button";
    button.addEventListener("click", () => act(app.name, button));
    return button;
  }, (button, { does }) => {
    button.dataset.act = does;
    button.inFlight = copy.inFlight;
    say(button, does[0].toUpperCase() + does.slice(1));
    button.title = ACTS[does];
    button.setAttribute("aria-label", clean(`${button.textContent} ${app.name} on this peer`));
  });
}

// All other peers in one line, to be opened.
function drawOthers(cell, app, others) {
  let details = cell.querySelector("details");
  if (!details) {
    details = make("details", null, "others");
    details.append(make("summary"), document.createElement("ul"));
    details.addEventListener("toggle", () => { if (current) drawApps(current); });
    cell.append(details);
  }
  const groups = ORDER.flatMap((state) => {
    const of = others.map((column) => copyOf(column, app)).filter((copy) => copy.state === state);
    if (!of.length) return [];
    const names = of.slice(0, NAMES_MAX).map((copy) => {
      const left = state === "starting" && copy.eta != null ? `, ${Math.ceil(copy.eta / 1000)} s left` : "";
      return `${copy.peer}${left}${copy.suspect ? ", not heard from" : ""}`;
    });
    if (of.length > NAMES_MAX) names.push("…");
    return [{ state, text: state === "cold" ? `${of.length} cold` : `${of.length} ${state}: ${names.join(", ")}` }];
  });
  if (!groups.length) groups.push({ state: "none", text: "on no other peer" });
  keep(details.firstElementChild, groups, (group) => group.state, (group) => make("span", "", `group ${KINDS[group.state] ?? ""}`), (part, group) => say(part, group.text));
  const shown = details.open ? others.filter((column) => copyOf(column, app).state !== null) : [];
  keep(details.lastElementChild, shown, (column) => column.key, (column) => {
    const item = make("li");
    item.append(make("strong", column.name), make("div"));
    return item;
  }, (item, column) => drawCopy(item.lastElementChild, app, copyOf(column, app)));
}

// Between two events the bars go on by themselves, as long as there are events.
function drawProgress() {
  if (!live) return;
  for (const bar of document.querySelectorAll(".bar")) {
    const now = performance.now(), small = bar.parentElement.querySelector("small");
    const unknown = bar.eta === null;
    bar.classList.toggle("unknown", unknown);
    if (unknown) {
      bar.removeAttribute("aria-valuenow");
      bar.firstElementChild.style.width = "";
      say(small, `for ${span(now - bar.began)}${bar.here ? "; its first start here" : ""}`);
      continue;
    }
    const left = Math.max(0, bar.eta - (now - bar.since)), gone = now - bar.began;
    bar.shown = Math.max(bar.shown, Math.min(97, 100 * gone / Math.max(1, gone + left)));
    bar.firstElementChild.style.width = `${bar.shown}%`;
    bar.setAttribute("aria-valuenow", String(Math.round(bar.shown)));
    // A start that is overdue is said to need next to nothing, again and again.
    if (left > 150) bar.due = now + left;
    const overdue = now - (bar.due ??= now) > 1500;
    say(small, left > 150 ? `ready in ${(left / 1000).toFixed(1)} s` : overdue ? `longer than usual${bar.here ? `: ${span(gone)} so far` : ""}` : "any moment now");
  }
}

// The apps that anybody has: this peer's own, and then those of others.
function allApps(status) {
  const others = columns(status).slice(1).map((column) => column.peer);
  const apps = status.apps.map((own) => ({ name: own.name, own }));
  const own = new Set(status.apps.map((app) => app.name));
  const elsewhere = new Set(others.flatMap((peer) => Object.keys(peer.apps)).filter((name) => !own.has(name)));
  apps.push(...[...elsewhere].sort().map((name) => ({ name })));
  for (const app of apps) {
    const etas = others.filter((peer) => peer.apps[app.name] === "cold").map((peer) => peer.copies[app.name]?.eta_ms);
    const known = etas.filter((eta) => eta != null);
    app.startTakes = known.length ? Math.min(...known) : null;
  }
  return apps;
}

// A matrix where each peer has room for a column; else one line for all other peers.
function drawApps(status) {
  const table = byId("apps"), peers = columns(status), [here, ...others] = peers;
  const folded = FIRST_COLUMN_PX + peers.length * COLUMN_PX > table.parentElement.clientWidth;
  const shown = !folded ? peers : others.length ? [here, { key: "others", name: "Elsewhere", others }] : [here];
  const title = (column) => column.here ? `${column.name} (this peer)` : column.name;
  const cells = [{ key: "app", name: "App" }, ...shown];
  keep(table.tHead.rows[0], cells, (column) => column.key, (column) => {
    const head = make("th", null, column.here ? "here" : "");
    head.scope = "col";
    return head;
  }, (head, column) => say(head, title(column)));
  keep(table.tBodies[0], allApps(status), (app) => app.name, () => document.createElement("tr"), (row, app) => {
    keep(row, cells, (column) => column.key, (column) => {
      if (column.key !== "app") return make("td", null, column.here ? "here" : "");
      const head = make("th", app.name);
      head.scope = "row";
      head.append(make("small"));
      return head;
    }, (cell, column) => {
      if (column.key === "app") {
        say(cell.lastElementChild, app.own ? app.own.session === "none" ? "no sessions" : `${app.own.session} sessions` : "");
        return;
      }
      cell.dataset.label = clean(column.name);
      if (column.others) return drawOthers(cell, app, column.others);
      const copy = copyOf(column, app);
      cell.classList.toggle("empty", copy.state === null && !copy.here);
      if (copy.here) drawOwn(cell, app, copy);
      else drawCopy(cell, app, copy);
    });
  });
}

// What is wider than its place is moved by the keyboard, too.
function drawScrolls() {
  for (const region of document.querySelectorAll(".scroll")) {
    if (region.scrollWidth > region.clientWidth) region.tabIndex = 0;
    else if (document.activeElement !== region) region.removeAttribute("tabindex");
  }
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
      if (i === 0) cell.append(pill(""), make("span", "", "error"));
      else cell.append(make("span"));
    });
    return row;
  }, (row, peer) => {
    say(row.cells[0], peer.here ? `${peer.name} (this peer)` : peer.name);
    setPill(row.cells[1].firstElementChild, peer.state);
    say(row.cells[1].lastElementChild, peer.unlinked ?? "");
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

// The decision that a request came to. A refusal and the starting page are recorded as a problem after
// that.
function decision(trace) {
  const [last, previous] = trace.steps.filter((step) => WORDS[step.what]).reverse();
  const isTold = last?.what === "problem" && (previous?.what === "refuse" || previous?.what === "page");
  return (isTold ? previous : last) ?? trace.steps.at(-1) ?? { what: "", why: "" };
}

function words(trace, step) {
  if (step.what === "cut-off") return WORDS[step.what];
  if (trace.role === "hop") return "hopped in";
  const to = trace.sent_to ?? trace.served_by;
  if ((step.what === "hop" || step.what === "forward") && to) return `to ${to}`;
  return WORDS[step.what] ?? step.what;
}

function outcome(trace) {
  if (trace.status != null) return [trace.status, trace.head_ms == null ? null : duration(trace.head_ms)].filter((part) => part != null).join(" · ");
  return { cancelled: "client left", refuse: "refused" }[trace.steps.at(-1)?.what] ?? "…";
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
  const facts = [`app ${trace.app ?? "none"}`];
  if (trace.host) facts.push(`host ${trace.host}`);
  facts.push(`id ${trace.id}`);
  if (trace.session) facts.push(`session ${trace.session}`);
  if (trace.served_by) facts.push(`served by ${trace.served_by}`);
  facts.push(`arrived ${new Date(trace.at_unix_ms).toISOString()}`);
  parts.push(make("p", facts.join(" · "), "quiet"));
  box.replaceChildren(...parts);
}

// Equal decisions come as one, whose newest request is another each time.
const kindOf = (trace) => JSON.stringify([trace.role, trace.app ?? [trace.host], trace.request, trace.status, trace.served_by, trace.sent_to, trace.steps.map((step) => step.what)]);

function drawRecent() {
  const wanted = byId("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  const shown = recent.filter((trace) => {
    const step = decision(trace);
    const text = [trace.app, trace.host, trace.request, trace.served_by, trace.sent_to, trace.status, step.why, words(trace, step), outcome(trace), trace.id, trace.session].join(" ").toLowerCase();
    return wanted.every((word) => text.includes(word));
  });
  keep(byId("recent"), shown, kindOf, () => {
    const item = document.createElement("li"), details = make("details"), summary = make("summary");
    for (const part of ["at", "what", "request", "why", "result"]) summary.append(make("span", "", part));
    summary.children[2].append(make("span", "", "app"), " ", make("span"));
    details.append(summary, make("div", null, "steps"));
    details.addEventListener("toggle", () => { if (details.open) drawSteps(details.lastElementChild, item.trace); });
    item.append(details);
    return item;
  }, (item, trace) => {
    item.trace = trace;
    const details = item.firstElementChild, [, what, request, why, result] = details.firstElementChild.children;
    const step = decision(trace);
    say(what, trace.times > 1 ? `${words(trace, step)} ×${trace.times}` : words(trace, step));
    // The starting page is no failure, though its status says that the app cannot serve yet.
    const failed = (trace.status >= 500 && step.what !== "page") || step.what === "cut-off";
    what.className = `what ${failed ? "bad" : trace.role === "hop" ? "" : WHAT_KINDS[step.what] ?? ""}`;
    result.className = failed ? "result errors" : "result";
    // Apps may be told apart by their hosts alone.
    const of = trace.app ?? (trace.host ? `no app for ${trace.host}` : "no app");
    say(request.firstElementChild, of);
    say(request.lastElementChild, trace.request);
    request.title = clean(`${of}: ${trace.request}`);
    say(why, step.why);
    why.title = clean(step.why);
    say(result, outcome(trace));
    if (details.open) drawSteps(details.lastElementChild, trace);
  });
  drawAges();
  byId("none").hidden = shown.length > 0;
  say(byId("none"), recent.length ? "None of the recent requests matches the filter." : "Requests show here as they arrive.");
}

// By the peer's clock, which this machine's need not agree with.
function drawAges() {
  const now = peerTime + performance.now() - statusAt;
  for (const item of byId("recent").children) {
    say(item.querySelector(".at"), ago(now - item.trace.at_unix_ms));
  }
}

// Whether somebody reads the list, which is not to move under their eyes.
const isRead = () => byId("recent").querySelector("details[open]") !== null || byId("recent").contains(document.activeElement);

// The status itself changes only when it is another: it is read out.
function drawLine() {
  const lost = current !== null && !live, line = byId("line");
  document.body.classList.toggle("stale", lost);
  line.parentElement.className = `line ${live ? "live" : problem ? "lost" : ""}`;
  const again = "Trying again.";
  if (live) say(line, "Live");
  else if (!problem) say(line, "Connecting …");
  else if (current) say(line, `Connection lost: ${problem}. ${again}`);
  else say(line, rejected || !byId("ask").hidden ? `${problem}.` : `No answer: ${problem}. ${again}`);
  say(byId("age"), lost ? `This is what it was ${ago(performance.now() - statusAt)}.` : "");
  if (!current) return;
  const state = live ? current.peer.state : problem ? "no answer" : "…";
  setPill(byId("state"), state);
  setPill(byId("peers").tBodies[0].rows[0].cells[1].firstElementChild, state);
  const name = clean(current.peer.name);
  const title = live || !problem ? `${name} – warmhop` : `no answer – ${name} – warmhop`;
  if (document.title !== title) document.title = title;
}

// Which certificates have less than 30 days left, in words; nothing where none has.
function certificates(peer, now) {
  const all = [["peer", peer.identity_not_after], ["front door", peer.front_door_not_after]];
  const ending = all.filter(([, ends]) => ends && ends - now < 30 * 86400);
  return ending.map(([whose, ends]) => `The ${whose}’s certificate ${ends < now ? "has expired" : `ends in ${span(1000 * (ends - now))}`}: renew it.`).join(" ");
}

function draw(news) {
  const { status } = news;
  [current, statusAt, peerTime] = [status, performance.now(), news.now_unix_ms];
  [live, problem, rejected] = [true, "", false];
  measure(status);
  measureHops(status);
  say(byId("name"), status.peer.name);
  const zone = status.peer.zone ? `, zone ${status.peer.zone}` : "";
  say(byId("about"), `up ${span(status.peer.uptime_ms)}${zone}, version ${status.peer.version}`);
  say(byId("certificates"), certificates(status.peer, news.now_unix_ms / 1000));
  const seeds = seedsInWords(status.seeds);
  byId("seeds").className = seeds.isGrave ? "ends" : "ends busy";
  say(byId("seeds"), seeds.text);
  say(byId("owned"), count(status.sessions.owned));
  say(byId("copies"), `${count(status.sessions.copies)} ${status.sessions.copies === 1 ? "copy" : "copies"} held`);
  say(byId("takeovers"), count(status.takeovers));
  const drains = status.peer.state !== "serving";
  byId("drain").dataset.act = drains ? "undrain" : "drain";
  say(byId("drain"), drains ? "Take traffic again" : "Drain");
  byId("ask").hidden = true;
  byId("main").hidden = false;
  if (history === null) {
    history = { width: 0, bounds: [], apps: new Map(), peers: 0 };
    askHistory();
  }
  drawRates();
  drawApps(status);
  drawPeers(status);
  drawProgress();
  const read = isRead();
  byId("why-held").hidden = held || !read;
  if (!held && !read) {
    recent = news.recent;
    drawRecent();
  }
  drawScrolls();
  drawLine();
}

function headers() {
  return token ? { Authorization: `Bearer ${token}` } : {};
}

async function act(app, button) {
  const does = button.dataset.act, stops = does === "stop" || does === "pause";
  const serves = button.inFlight > 0 || performance.now() - (lately.get(app)?.at ?? -Infinity) < LATELY_MS;
  if (stops && serves && !confirm(`${clean(app)} serves requests here. Those under way may end first; what comes then goes to another peer, or waits. ${does === "pause" ? "Pause" : "Stop"} it?`)) return;
  await post(`/v1/apps/${encodeURIComponent(app)}/${does}`, button);
}

async function drain() {
  const does = byId("drain").dataset.act;
  if (does === "drain" && !confirm(`${clean(current.peer.name)} gives its sessions to other peers and takes no new clients, until this is called off. Drain it?`)) return;
  await post(`/v1/${does}`, byId("drain"));
}

async function post(path, button) {
  button.disabled = true;
  try {
    const reply = await fetch(path, { method: "POST", headers: headers(), signal: AbortSignal.timeout(STALE_MS) });
    if (!reply.ok) alert(clean((await reply.json()).detail ?? reply.statusText));
  } catch (error) {
    alert(clean(error.message));
  }
  button.disabled = false;
  if (document.activeElement === document.body) button.focus();
}

function askForToken() {
  rejected ||= Boolean(token);
  token = null;
  sessionStorage.removeItem("warmhop-token");
  current = null;
  byId("ask").hidden = false;
  byId("main").hidden = true;
  if (document.activeElement === document.body) byId("token").focus();
  throw new Error(rejected ? "The peer did not accept this token" : "This peer asks for its admin token");
}

// EventSource cannot send the token, so the stream (text/event-stream) is read by hand.
async function listen() {
  stream = new AbortController();
  heardAt = performance.now();
  try {
    const reply = await fetch("/v1/events", { headers: { ...headers(), Accept: "text/event-stream" }, cache: "no-store", signal: stream.signal });
    if (reply.status === 401) askForToken();
    if (!reply.ok) throw new Error((await reply.json()).detail ?? reply.statusText);
    const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let text = ""; ;) {
      const { value, done } = await reader.read();
      if (done) return;
      heardAt = performance.now();
      text += value;
      const events = text.split("\n\n");
      text = events.pop();
      for (const event of events) {
        const data = event.split("\n").filter((line) => line.startsWith("data: ")).map((line) => line.slice(6)).join("\n");
        if (data) draw(JSON.parse(data));
      }
    }
  } finally {
    stream = null;
  }
}

async function forEver() {
  for (;;) {
    const pause = new Promise((resolve) => { wake = resolve; });
    if (document.hidden) {
      await pause;
      continue;
    }
    try {
      const before = statusAt;
      await listen();
      // The peer closes each stream after a while; whether it still answers shows at once.
      if (statusAt !== before) continue;
      throw new Error("the peer closed the stream");
    } catch (error) {
      live = false;
      problem = document.hidden ? "" : error.message.replace(/\.$/, "");
    }
    drawLine();
    setTimeout(wake, AGAIN_MS);
    await pause;
  }
}

// A connection that dies without a word would be read from for ever.
function watchOver() {
  if (stream && performance.now() - heardAt > STALE_MS) stream.abort(new Error(`no event for ${STALE_MS / 1000} s`));
}

// A browser has six connections to one origin for all its tabs: one that nobody looks at keeps none.
document.addEventListener("visibilitychange", () => {
  if (document.hidden) stream?.abort(new Error("nobody looks at it"));
  wake();
});
byId("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const typed = byId("token").value.trim();
  if (!/^[\x21-\x7e]+$/.test(typed)) {
    problem = "A token is of letters, digits and signs of ASCII, without spaces";
    drawLine();
    return;
  }
  token = typed;
  rejected = false;
  sessionStorage.setItem("warmhop-token", token);
  wake();
});
byId("filter").addEventListener("input", drawRecent);
byId("hold").addEventListener("click", () => {
  held = !held;
  byId("hold").setAttribute("aria-pressed", String(held));
});
addEventListener("resize", () => {
  if (current) drawApps(current);
  drawScrolls();
});
setInterval(() => { watchOver(); drawProgress(); drawAges(); drawLine(); }, DRAW_MS);
byId("drain").addEventListener("click", drain);
setInterval(askOthers, OTHERS_EVERY_MS);
setInterval(askHistory, HISTORY_EVERY_MS);
let drawn = 0;
// Thirty pictures a second are enough for marks that move, and none is drawn for a hidden page.
requestAnimationFrame(function frame(now) {
  if (now - drawn > 33) {
    drawn = now;
    drawPicture();
  }
  requestAnimationFrame(frame);
});
forEver();
})();
