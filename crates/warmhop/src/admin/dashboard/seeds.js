// Which of the peers that this one was to join it has reached, in words.
"use strict";
const { seedsInWords, isAlone } = (() => {
// Nothing where all were reached. It is grave if none was, and each has been tried.
function seedsInWords(seeds) {
  const missing = seeds.filter((seed) => !seed.reached), reached = seeds.length - missing.length;
  const lines = missing.map((seed) => `${seed.seed}: ${seed.error ?? "not tried yet"}`);
  if (missing.length) lines.unshift(`Seeds: ${reached} of ${seeds.length} reached`);
  return { text: lines.join("\n"), isGrave: reached === 0 && missing.every((seed) => seed.error != null) };
}

// Whether a peer was to join others, and neither reached nor hears any of them.
const isAlone = ({ seeds, peers }) => seeds.length > 0 && seedsInWords(seeds).isGrave && !peers.some((peer) => peer.alive);

return { seedsInWords, isAlone };
})();
