// What became of each app's requests over the last ten minutes, put together from what every peer
// that answers keeps of it.
"use strict";
const { mergeHistories, quantile, traffic } = (() => {
// One bin of each app for each interval, the newest first. The intervals of peers do not begin
// together, so each is spread over the bins that it lies in.
function mergeHistories(histories) {
  const { interval_ms: width, intervals_max: length, bounds_ms: bounds } = histories[0];
  const apps = new Map();
  const same = histories.filter((each) => each.interval_ms === width && each.bounds_ms.length === bounds.length);
  for (const { apps: ofPeer } of same) {
    for (const [name, intervals] of Object.entries(ofPeer)) {
      if (!apps.has(name)) apps.set(name, Array.from({ length }, () => ({ requests: 0, failed: 0, heads: bounds.map(() => 0).concat(0) })));
      const bins = apps.get(name);
      for (const each of intervals) {
        const from = each.ended_ms_ago, to = from + Math.max(1, each.lasted_ms);
        for (let at = Math.floor(from / width); at < length && at * width < to; at++) {
          const share = (Math.min(to, (at + 1) * width) - Math.max(from, at * width)) / (to - from), bin = bins[at];
          bin.requests += each.requests * share;
          bin.failed += each.failed * share;
          each.heads.forEach((count, i) => { bin.heads[i] += count * share; });
        }
      }
    }
  }
  return { width, bounds, apps };
}

// The duration within which a share of the heads came, in milliseconds, by linear interpolation within
// its bucket, as Prometheus' histogram_quantile does. `null`: there were none.
function quantile(share, bounds, heads) {
  const all = heads.reduce((sum, count) => sum + count, 0);
  if (all < .5) return null;
  let below = 0;
  for (let i = 0; i < bounds.length; i++) {
    if (below + heads[i] >= share * all) {
      const lower = i ? bounds[i - 1] : 0;
      return lower + (bounds[i] - lower) * (share * all - below) / heads[i];
    }
    below += heads[i];
  }
  return Infinity;
}

// The figures of one app: of all bins, and of each, the oldest first.
function traffic(bins, width, bounds) {
  const sum = (of) => bins.reduce((all, bin) => all + of(bin), 0);
  const heads = bins[0].heads.map((_, i) => sum((bin) => bin.heads[i]));
  const requests = sum((bin) => bin.requests), failed = sum((bin) => bin.failed);
  const oldestFirst = [...bins].reverse();
  return {
    requests, failed,
    lately: bins.slice(0, 3).reduce((all, bin) => all + bin.requests, 0) * 1000 / (3 * width),
    p50: quantile(.5, bounds, heads), p99: quantile(.99, bounds, heads),
    rates: oldestFirst.map((bin) => bin.requests * 1000 / width),
    shares: oldestFirst.map((bin) => bin.requests > 0 ? bin.failed / bin.requests : 0),
    slowest: oldestFirst.map((bin) => quantile(.99, bounds, bin.heads)),
  };
}

return { mergeHistories, quantile, traffic };
})();
