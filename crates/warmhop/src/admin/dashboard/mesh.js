// The mesh as a picture: peers as nodes on an ellipse, each with a dot for each of its apps, and hops
// as arcs whose marks move as quickly as requests are sent. What is drawn is in the tables below it as
// well, so the picture has one description and no parts to be read one by one.
"use strict";
const drawMesh = (() => {
// The namespace of SVG, as the page itself has it: nothing here looks like an address.
const namespace = () => document.getElementById("mesh").namespaceURI;
const MARGIN_TOP = 46, MARGIN_BOTTOM = 58;
// On a phone a picture of the same size would have names that nobody can read.
const WIDE = { width: 760, margin: 96 }, NARROW = { width: 360, margin: 62 };
const NARROW_PX = 560, NARROW_PEERS_MAX = 8;
// Beyond so many peers names and dots of apps would lie upon each other.
const NAMES_MAX = 24, DOTS_MAX = 8, NAME_CHARS_MAX = 16;
const SPEED_PX = 26, DASH_PX = 14;
let offsets = new Map(), last = 0;

function part(name, attributes, kind) {
  const element = document.createElementNS(namespace(), name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, String(value));
  if (kind) element.setAttribute("class", kind);
  return element;
}

function place(count, { width, margin }, height) {
  if (count === 1) return [{ x: width / 2, y: height / 2 }];
  const [rx, ry] = [width / 2 - margin, (height - MARGIN_TOP - MARGIN_BOTTOM) / 2];
  return Array.from({ length: count }, (_, i) => {
    // Two lie beside each other, three and more begin at the top.
    const angle = (count === 2 ? Math.PI : -Math.PI / 2) + i * 2 * Math.PI / count;
    return { x: width / 2 + rx * Math.cos(angle), y: MARGIN_TOP + ry + ry * Math.sin(angle) };
  });
}

// From edge to edge of two nodes, bent to the right of its direction, so that both directions show.
function arc(from, to, radius) {
  const [dx, dy] = [to.x - from.x, to.y - from.y], length = Math.hypot(dx, dy) || 1;
  const [ux, uy] = [dx / length, dy / length], bend = Math.min(46, length * .16);
  const control = { x: (from.x + to.x) / 2 - uy * bend, y: (from.y + to.y) / 2 + ux * bend };
  const edge = (node) => {
    const [ex, ey] = [control.x - node.x, control.y - node.y], far = Math.hypot(ex, ey) || 1;
    return [node.x + ex / far * (radius + 5), node.y + ey / far * (radius + 5)].map((at) => at.toFixed(1)).join(" ");
  };
  return `M${edge(from)}Q${control.x.toFixed(1)} ${control.y.toFixed(1)} ${edge(to)}`;
}

function node(peer, at, radius, named) {
  const group = part("g", { transform: `translate(${at.x.toFixed(1)} ${at.y.toFixed(1)})` }, `node ${peer.kind}${peer.here ? " here" : ""}`);
  group.append(part("circle", { r: radius }, "disc"));
  const apps = peer.apps.slice(0, DOTS_MAX), step = 13, first = -(apps.length - 1) * step / 2;
  apps.forEach((app, i) => {
    const x = first + i * step;
    group.append(part("circle", { cx: x, r: 4.5 }, `dot ${app.kind}`));
    if (app.state !== "starting") return;
    const around = 2 * Math.PI * 7.5, done = app.progress ?? .25;
    group.append(part("circle", { cx: x, r: 7.5, "stroke-dasharray": `${(around * done).toFixed(1)} ${around.toFixed(1)}`, transform: `rotate(-90 ${x} 0)` }, "towards"));
  });
  if (named) {
    const name = part("text", { y: radius + 19, "text-anchor": "middle" }, "name");
    name.textContent = peer.name.length > NAME_CHARS_MAX ? `${peer.name.slice(0, NAME_CHARS_MAX - 1)}…` : peer.name;
    group.append(name);
    if (peer.note) {
      const note = part("text", { y: radius + 34, "text-anchor": "middle" }, "note");
      note.textContent = peer.note;
      group.append(note);
    }
  }
  return group;
}

// `peers`: name, kind, here, note, apps of name, state, kind and progress. `hops`: from, to, rate.
return (svg, { peers, hops }) => {
  const height = peers.length < 3 ? 190 : Math.min(420, 250 + peers.length * 10);
  const size = svg.clientWidth < NARROW_PX && peers.length <= NARROW_PEERS_MAX ? NARROW : WIDE;
  svg.setAttribute("viewBox", `0 0 ${size.width} ${height}`);
  const named = peers.length <= NAMES_MAX;
  const radius = peers.length > NAMES_MAX ? 12 : Math.max(24, 14 + 6.5 * Math.min(DOTS_MAX, Math.max(...peers.map((peer) => peer.apps.length))));
  const places = place(peers.length, size, height), at = new Map(peers.map((peer, i) => [peer.name, places[i]]));
  const now = performance.now(), gone = Math.min(1, (now - last) / 1000), moved = new Map();
  last = now;
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  const arcs = hops.filter((hop) => at.has(hop.from) && at.has(hop.to)).map((hop) => {
    const key = `${hop.from} ${hop.to}`, rate = hop.rate;
    const speed = rate > 0 && !still ? SPEED_PX * Math.log2(2 + rate) : 0;
    const offset = ((offsets.get(key) ?? 0) + speed * gone) % DASH_PX;
    moved.set(key, offset);
    const path = arc(at.get(hop.from), at.get(hop.to), radius);
    const width = rate > 0 ? Math.min(7, 1.6 + Math.log2(1 + rate) * .7) : 1;
    return part("path", { d: path, "stroke-width": width.toFixed(1), "stroke-dashoffset": (-offset).toFixed(1) }, rate > 0 ? "hops" : "hops rest");
  });
  offsets = moved;
  svg.replaceChildren(...arcs, ...peers.map((peer, i) => node(peer, places[i], radius, named)));
};
})();
