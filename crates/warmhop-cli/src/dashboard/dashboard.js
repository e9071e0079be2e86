// Draws GET /v1/status once a second. Whatever comes from the peer is set as text, never as
// markup: names and error texts are not this page's own.
"use strict";

const REFRESH_MS = 1000;
const byId = (id) => document.getElementById(id);
let token = sessionStorage.getItem("warmhop-token");
let timer;

async function ask(method, path) {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  const reply = await fetch(path, { method, headers, cache: "no-store" });
  if (reply.status === 401) {
    byId("ask").hidden = false;
    byId("main").hidden = true;
    throw new Error("this peer asks for its admin token");
  }
  const body = await reply.json();
  if (!reply.ok) throw new Error(body.detail ?? reply.statusText);
  return body;
}

function cell(row, text, kind) {
  const td = row.insertCell();
  td.textContent = text ?? "–";
  if (kind) td.className = kind;
  return td;
}

const STATE_KINDS = { ready: "good", serving: "good", alive: "good", starting: "busy", stopping: "busy", draining: "busy", failed: "bad", gone: "bad" };

function drawPeers(status) {
  const rows = document.createElement("tbody");
  const draw = (peer, state, rtt, http) => {
    const row = rows.insertRow();
    cell(row, peer.name);
    cell(row, state, STATE_KINDS[state]);
    cell(row, rtt, "number");
    cell(row, peer.zone);
    cell(row, http);
    cell(row, peer.mesh);
  };
  draw({ ...status.peer, name: `${status.peer.name} (this one)` }, status.peer.state, null, (status.peer.http ?? []).join(", ") || null);
  for (const peer of status.peers) {
    const state = !peer.alive ? "gone" : peer.draining ? "draining" : "alive";
    const rtt = peer.rtt_us == null ? null : `${(peer.rtt_us / 1000).toFixed(1)} ms`;
    draw(peer, state, rtt, peer.http);
  }
  rows.id = "peers";
  byId("peers").replaceWith(rows);
}

function drawApps(status) {
  const rows = document.createElement("tbody");
  for (const app of status.apps) {
    const row = rows.insertRow();
    cell(row, app.name);
    const here = cell(row, app.state, STATE_KINDS[app.state]);
    if (app.error) here.appendChild(document.createElement("small")).textContent = app.error;
    const others = status.peers.filter((peer) => peer.alive && peer.apps[app.name] && peer.apps[app.name] !== "cold");
    cell(row, others.map((peer) => `${peer.name} ${peer.apps[app.name]}`).join(", ") || null);
    cell(row, app.starts, "number");
    cell(row, app.eta_ms == null ? null : `${(app.eta_ms / 1000).toFixed(1)} s`, "number");
    cell(row, app.in_flight, "number");
    cell(row, app.session);
    const up = app.state === "ready" || app.state === "starting";
    const button = document.createElement("button");
    button.textContent = up ? "Stop" : "Start";
    button.addEventListener("click", async () => {
      button.disabled = true;
      try {
        await ask("POST", `/v1/apps/${encodeURIComponent(app.name)}/${up ? "stop" : "start"}`);
      } catch (error) {
        alert(error.message);
      }
      refresh();
    });
    row.insertCell().appendChild(button);
  }
  rows.id = "apps";
  byId("apps").replaceWith(rows);
}

async function refresh() {
  clearTimeout(timer);
  try {
    const status = await ask("GET", "/v1/status");
    byId("name").textContent = status.peer.name;
    document.title = `${status.peer.name} – warmhop`;
    const { owned, copies } = status.sessions;
    byId("summary").textContent = `${status.peer.state}, up ${Math.round(status.peer.uptime_ms / 1000)} s, version ${status.peer.version}; owns ${owned} sessions, holds ${copies} copies`;
    // A button that is about to be pressed must not be replaced under the pointer.
    if (!document.querySelector("button:hover, button:focus-visible")) {
      drawPeers(status);
      drawApps(status);
    }
    byId("ask").hidden = true;
    byId("main").hidden = false;
  } catch (error) {
    byId("summary").textContent = `no answer: ${error.message}`;
  }
  timer = setTimeout(refresh, REFRESH_MS);
}

byId("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  token = byId("token").value;
  sessionStorage.setItem("warmhop-token", token);
  refresh();
});
refresh();
