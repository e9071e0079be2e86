//! The plots, as SVG: rows over one axis of time, with the faults behind all of them.

use std::fmt::{self, Write};

use super::series::{Bin, Series};
use super::{Text, count, span};
use crate::chaos::history::{Fault, History, Micros};

/// The drawing's width and where its rows begin and end, in its own units.
const WIDTH: f64 = 1100.0;
const LEFT: f64 = 86.0;
const RIGHT: f64 = 1084.0;
/// Below each row, for the next one's title.
const GAP: f64 = 34.0;
const LANE: f64 = 17.0;
/// The least that the logarithmic axis shows, in microseconds.
const FLOOR: f64 = 1_000.0;

/// Where times and values lie.
struct Frame<'h> {
    history: &'h History,
    series: &'h Series,
}

impl Frame<'_> {
    fn x(&self, at: Micros) -> f64 {
        let share = at.min(self.history.length) as f64 / self.history.length.max(1) as f64;
        LEFT + share * (RIGHT - LEFT)
    }

    /// The left edge and the width of a bin.
    fn column(&self, bin: usize) -> (f64, f64) {
        let begins = |bin: usize| self.x(bin as u64 * self.series.bin);
        (begins(bin), begins(bin + 1) - begins(bin))
    }

    fn faults(&self, out: &mut String, top: f64, height: f64) -> fmt::Result {
        for fault in &self.history.faults {
            let (from, to) = (self.x(fault.began), self.x(fault.ended));
            writeln!(
                out,
                "<rect class=\"band\" x=\"{from:.1}\" y=\"{top:.1}\" width=\"{:.1}\" \
                 height=\"{height:.1}\"/>",
                (to - from).max(1.0)
            )?;
        }
        Ok(())
    }

    /// One row's title, its faults and its base line.
    fn row(&self, out: &mut String, title: &str, top: f64, height: f64) -> fmt::Result {
        self.faults(out, top, height)?;
        writeln!(
            out,
            "<text class=\"title\" x=\"{LEFT}\" y=\"{:.1}\">{title}</text>\n\
             <line class=\"axis\" x1=\"{LEFT}\" x2=\"{RIGHT}\" y1=\"{:.1}\" y2=\"{:.1}\"/>",
            top - 9.0,
            top + height,
            top + height
        )
    }

    fn line_at(&self, out: &mut String, y: f64, label: &str) -> fmt::Result {
        writeln!(
            out,
            "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{RIGHT}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>\n\
             <text class=\"end\" x=\"{:.1}\" y=\"{:.1}\">{label}</text>",
            LEFT - 8.0,
            y + 4.0
        )
    }

    /// A row of bars, from nothing to the highest.
    fn bars(
        &self,
        out: &mut String,
        (title, class): (&str, &str),
        (top, height): (f64, f64),
        value: impl Fn(&Bin) -> f64,
    ) -> fmt::Result {
        self.row(out, title, top, height)?;
        let highest = self.series.bins.iter().map(&value).fold(0.0, f64::max);
        let full = nice(highest);
        self.line_at(out, top, &number(full))?;
        for (at, bin) in self.series.bins.iter().enumerate() {
            let value = value(bin);
            if value <= 0.0 {
                continue;
            }
            let (x, width) = self.column(at);
            let high = (value / full * height).max(0.8);
            writeln!(
                out,
                "<rect class=\"{class}\" x=\"{x:.1}\" y=\"{:.1}\" width=\"{:.1}\" \
                 height=\"{high:.1}\"><title>{}: {}</title></rect>",
                top + height - high,
                (width - 0.6).max(0.6),
                self.when(at),
                number(value)
            )?;
        }
        Ok(())
    }

    fn per_bin(&self) -> String {
        match self.series.bin / 1_000_000 {
            1 => "per second".to_owned(),
            seconds => format!("per {seconds} seconds"),
        }
    }

    fn when(&self, bin: usize) -> String {
        clock(bin as u64 * self.series.bin)
    }

    fn times(&self, out: &mut String, y: f64) -> fmt::Result {
        let seconds = self.history.length / 1_000_000;
        let steps = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1800, 3600, 7200];
        let step = steps.into_iter().find(|step| seconds / step <= 12).unwrap_or(14_400);
        for at in (0..=seconds).step_by(usize::try_from(step).unwrap_or(1)) {
            let at = at * 1_000_000;
            writeln!(
                out,
                "<text class=\"mid\" x=\"{:.1}\" y=\"{y:.1}\">{}</text>",
                self.x(at),
                clock(at)
            )?;
        }
        Ok(())
    }
}

fn begin(out: &mut String, height: f64, label: &str) -> fmt::Result {
    writeln!(
        out,
        "<div class=\"wide\"><svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} \
         {height:.0}\" role=\"img\" aria-label=\"{label}\">"
    )
}

/// Faults in lanes, waits, errors and requests.
pub(super) fn timeline(out: &mut String, history: &History, series: &Series) -> fmt::Result {
    let frame = Frame { history, series };
    let mut kinds: Vec<&str> = Vec::new();
    for fault in &history.faults {
        if !kinds.contains(&fault.kind.as_str()) {
            kinds.push(&fault.kind);
        }
    }
    let lanes = kinds.len() as f64 * LANE;
    let waits = (24.0 + lanes + GAP, 250.0);
    let errors = (waits.0 + waits.1 + GAP, 70.0);
    let requests = (errors.0 + errors.1 + GAP, 90.0);
    let height = requests.0 + requests.1 + 24.0;
    begin(out, height, "Faults, waits, errors and requests over time")?;
    writeln!(out, "<text class=\"title\" x=\"{LEFT}\" y=\"15\">Faults, and the peers hit</text>")?;
    for (lane, kind) in kinds.iter().enumerate() {
        let y = 24.0 + lane as f64 * LANE;
        writeln!(
            out,
            "<text class=\"end\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            LEFT - 8.0,
            y + 12.0,
            Text(kind)
        )?;
        for fault in history.faults.iter().filter(|fault| fault.kind == **kind) {
            lane_bar(out, &frame, fault, y)?;
        }
    }
    waits_row(out, &frame, waits)?;
    let title = format!("Errors, {}", frame.per_bin());
    frame.bars(out, (&title, "err"), errors, |bin| bin.errors as f64)?;
    let seconds = series.bin as f64 / 1e6;
    frame.bars(out, ("Requests answered, per second", "rate"), requests, |bin| {
        bin.answered as f64 / seconds
    })?;
    frame.times(out, height - 6.0)?;
    writeln!(out, "</svg></div>")
}

fn lane_bar(out: &mut String, frame: &Frame<'_>, fault: &Fault, y: f64) -> fmt::Result {
    let (from, to, whole) = (frame.x(fault.began), frame.x(fault.ended), frame.x(fault.whole));
    let (width, height) = ((to - from).max(2.0), LANE - 3.0);
    let all = fault.peers.len() == frame.history.peers.len();
    let peers = if all { "all".to_owned() } else { fault.peers.join(", ") };
    writeln!(
        out,
        "<g><title>{} s, {}: {}: {}</title><rect class=\"bar\" x=\"{from:.1}\" y=\"{y:.1}\" \
         width=\"{width:.1}\" height=\"{height}\" rx=\"2\"/><rect class=\"tail\" x=\"{:.1}\" \
         y=\"{y:.1}\" width=\"{:.1}\" height=\"{height}\"/>",
        fault.began / 1_000_000,
        Text(&fault.kind),
        Text(&peers),
        Text(&fault.what),
        from + width,
        (whole - from - width).max(0.0),
    )?;
    // The peers' numbers tell them apart where their names have no room: inside where the bar is
    // wide enough, else behind it.
    let short: Vec<&str> =
        fault.peers.iter().map(|peer| peer.strip_prefix("peer-").unwrap_or(peer)).collect();
    let mut label = if all { peers } else { short.join(" ") };
    if let Some(armed) = &fault.armed {
        label = format!("{label} {}", armed.point);
    }
    let needed = label.chars().count() as f64 * 6.0 + 6.0;
    let (x, class) = if width >= needed { (from + 4.0, "in") } else { (whole.max(to) + 4.0, "") };
    writeln!(
        out,
        "<text class=\"{class}\" x=\"{x:.1}\" y=\"{:.1}\">{}</text></g>",
        y + 11.0,
        Text(&label)
    )
}

fn waits_row(out: &mut String, frame: &Frame<'_>, (top, height): (f64, f64)) -> fmt::Result {
    frame.row(out, "Waits, logarithmic", top, height)?;
    let bins = &frame.series.bins;
    let longest = bins.iter().filter_map(|bin| bin.waits).map(|waits| waits[2]).max();
    let decades = (longest.unwrap_or_default() as f64 / FLOOR).max(10.0).log10().ceil();
    let y = |micros: Micros| {
        let high = (micros as f64 / FLOOR).max(1.0).log10() / decades;
        top + height - high.min(1.0) * height
    };
    let mut at = 1_000;
    for _ in 0..=decades as u32 {
        frame.line_at(out, y(at), &axis(at))?;
        at *= 10;
    }
    for (column, waits) in bins.iter().enumerate() {
        let Some([_, _, longest]) = waits.waits else { continue };
        let (x, width) = frame.column(column);
        writeln!(
            out,
            "<circle class=\"max\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"1.8\"><title>{}: longest {}\
             </title></circle>",
            x + width / 2.0,
            y(longest),
            frame.when(column),
            span(longest)
        )?;
    }
    for (which, class) in [(1, "p99"), (0, "p50")] {
        // A bin without any operation breaks the line.
        for run in bins.iter().enumerate().collect::<Vec<_>>().split(|(_, bin)| bin.waits.is_none())
        {
            let points: Vec<String> = run
                .iter()
                .filter_map(|(column, bin)| {
                    let (x, width) = frame.column(*column);
                    Some(format!("{:.1},{:.1}", x + width / 2.0, y(bin.waits?[which])))
                })
                .collect();
            if points.len() > 1 {
                writeln!(out, "<polyline class=\"{class}\" points=\"{}\"/>", points.join(" "))?;
            }
        }
    }
    let keys = [
        ("key-p50", "median", 62.0),
        ("key-p99", "99th percentile", 104.0),
        ("max", "longest", 0.0),
    ];
    let mut x = RIGHT - 216.0;
    for (class, name, next) in keys {
        writeln!(
            out,
            "<circle class=\"{class}\" cx=\"{x:.1}\" cy=\"{:.1}\" r=\"3.5\"/><text x=\"{:.1}\" \
             y=\"{:.1}\">{name}</text>",
            top - 13.0,
            x + 8.0,
            top - 9.0
        )?;
        x += next;
    }
    Ok(())
}

/// Who owned how many sessions, and how many changed hands.
pub(super) fn ownership(out: &mut String, history: &History, series: &Series) -> fmt::Result {
    let frame = Frame { history, series };
    let (owned, moves) = ((30.0, 150.0), (30.0 + 150.0 + GAP, 60.0));
    let keys = moves.0 + moves.1 + 40.0;
    let height = keys + 12.0;
    begin(out, height, "Sessions by owner, and moves between peers, over time")?;
    frame.row(out, "Sessions by owner", owned.0, owned.1)?;
    let sum = |bin: &Vec<Option<u64>>| bin.iter().flatten().sum::<u64>();
    let full = nice(series.owned.iter().map(sum).max().unwrap_or_default() as f64);
    for (at, bin) in series.owned.iter().enumerate() {
        let (x, width) = frame.column(at);
        let mut low = owned.0 + owned.1;
        for (peer, sessions) in bin.iter().enumerate() {
            let Some(sessions) = sessions.filter(|sessions| *sessions > 0) else { continue };
            let high = sessions as f64 / full * owned.1;
            low -= high;
            writeln!(
                out,
                "<rect style=\"{}\" x=\"{x:.1}\" y=\"{low:.1}\" width=\"{:.1}\" \
                 height=\"{high:.1}\"><title>{}: {} owns {}</title></rect>",
                fill(peer, history.peers.len()),
                // They overlap a little, so that no seam shows between them.
                width + 0.3,
                frame.when(at),
                Text(&history.peers[peer]),
                count(sessions)
            )?;
        }
    }
    frame.line_at(out, owned.0, &number(full))?;
    let title = format!("Moves, {}", frame.per_bin());
    frame.bars(out, (&title, "move"), moves, |bin| bin.moves as f64)?;
    frame.times(out, moves.0 + moves.1 + 18.0)?;
    let mut x = LEFT;
    for (peer, name) in history.peers.iter().enumerate() {
        writeln!(
            out,
            "<rect style=\"{}\" x=\"{x:.1}\" y=\"{:.1}\" width=\"10\" height=\"10\" rx=\"2\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            fill(peer, history.peers.len()),
            keys - 9.0,
            x + 15.0,
            keys,
            Text(name)
        )?;
        x += 66.0;
    }
    writeln!(out, "</svg></div>")
}

/// Neighbours in the stack are far apart in hue.
fn fill(peer: usize, peers: usize) -> String {
    let step = if peers > 6 { 7 } else { 1 };
    let hue = (210 + peer * step * 360 / peers.max(1)) % 360;
    format!("fill: hsl({hue} var(--tone) var(--lit))")
}

/// The least round number that is no less.
fn nice(value: f64) -> f64 {
    let mut unit = 1.0;
    loop {
        if let Some(step) =
            [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0].into_iter().find(|step| step * unit >= value)
        {
            return step * unit;
        }
        unit *= 10.0;
    }
}

fn number(value: f64) -> String {
    if value.fract() == 0.0 { count(value as u64) } else { format!("{value:.1}") }
}

fn axis(micros: Micros) -> String {
    if micros < 1_000_000 {
        format!("{} ms", micros / 1_000)
    } else {
        format!("{} s", micros / 1_000_000)
    }
}

fn clock(at: Micros) -> String {
    let seconds = at / 1_000_000;
    format!("{}:{:02}", seconds / 60, seconds % 60)
}
