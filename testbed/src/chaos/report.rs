//! A run as one page for people: the verdict, how long clients waited over time, and every fault.
//!
//! The page is one file that opens from disk: its style and its plots are inside, it fetches
//! nothing and needs no script. It is written as well-formed XML, so that a parser can check
//! it, and everything that comes from a run is escaped on its way in (`Text`).

mod plot;
mod series;

use std::collections::BTreeMap;
use std::fmt::{self, Write};

use super::history::{History, Micros};
use super::judge::Verdict;
use super::waits::{self, Wait};
use series::Series;

/// Text of a run, safe between tags and in attributes.
struct Text<T>(T);

impl<T: fmt::Display> fmt::Display for Text<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        struct Escaping<'a, 'b>(&'a mut fmt::Formatter<'b>);
        impl Write for Escaping<'_, '_> {
            fn write_str(&mut self, text: &str) -> fmt::Result {
                text.chars().try_for_each(|letter| match letter {
                    '&' => self.0.write_str("&amp;"),
                    '<' => self.0.write_str("&lt;"),
                    '>' => self.0.write_str("&gt;"),
                    '"' => self.0.write_str("&quot;"),
                    '\'' => self.0.write_str("&#39;"),
                    // XML has no way to say these at all.
                    '\0'..='\u{8}'
                    | '\u{b}'
                    | '\u{c}'
                    | '\u{e}'..='\u{1f}'
                    | '\u{fffe}'
                    | '\u{ffff}' => self.0.write_char('\u{fffd}'),
                    _ => self.0.write_char(letter),
                })
            }
        }
        write!(Escaping(f), "{}", self.0)
    }
}

/// The page.
#[must_use]
pub fn page(history: &History, verdict: &Verdict) -> String {
    let waits = waits::waits(history);
    let series = Series::of(history, &waits);
    let mut page = String::new();
    // Writing to a string fails only where memory ends.
    let _ = write_page(&mut page, history, verdict, &waits, &series);
    page
}

fn write_page(
    out: &mut String,
    history: &History,
    verdict: &Verdict,
    waits: &[Wait],
    series: &Series,
) -> fmt::Result {
    let holds = verdict.holds();
    let headline = if holds { "Every promise was kept" } else { "A promise was broken" };
    writeln!(
        out,
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n\
         <title>{headline}: chaos, seed {}</title>\n<style>\n{}</style>\n</head>\n<body>",
        verdict.seed,
        include_str!("report/page.css"),
    )?;
    writeln!(out, "<h1 class=\"{}\">{headline}</h1>", if holds { "good" } else { "bad" })?;
    let clients = waits.iter().map(|wait| wait.client).collect::<std::collections::BTreeSet<_>>();
    let faults: u64 = verdict.faults.values().sum();
    writeln!(
        out,
        "<p>{} peers, {} clients, {faults} faults in {}; seed <code>{}</code></p>",
        history.peers.len(),
        clients.len(),
        span(history.length),
        verdict.seed,
    )?;
    figures(out, verdict, waits)?;
    if let Some(why) = &verdict.cut_short {
        writeln!(out, "<ul><li>The run was cut short: {}</li></ul>", Text(why))?;
    }
    if !verdict.examples.is_empty() {
        writeln!(out, "<ul>")?;
        for example in &verdict.examples {
            writeln!(out, "<li>{}</li>", Text(example))?;
        }
        writeln!(out, "</ul>")?;
    }
    writeln!(
        out,
        "<h2>What clients bore</h2>\n<p>Each wait is from an operation's first attempt to its \
         answer, repeats included, less what the app was asked to take; it stands where it \
         began. Grey bands are faults, from the deed to its undoing; the lighter tail lasts \
         until the mesh was whole again.</p>"
    )?;
    plot::timeline(out, history, series)?;
    waits_table(out, verdict)?;
    writeln!(
        out,
        "<h2>Where sessions were served</h2>\n<p>Owned sessions as each peer reports them, once \
         a second; a peer that does not answer is left out. A move is counted where a session's \
         answer comes from another peer than its last one did.</p>"
    )?;
    plot::ownership(out, history, series)?;
    moves_table(out, history, series)?;
    faults_table(out, history, waits)?;
    failpoints_table(out, verdict)?;
    errors_table(out, verdict)?;
    writeln!(
        out,
        "<footer>Judged from what {} requests of the clients saw, and nothing else.</footer>\n\
         </body>\n</html>",
        count(verdict.requests)
    )
}

fn figures(out: &mut String, verdict: &Verdict, waits: &[Wait]) -> fmt::Result {
    let longest = waits.iter().map(|wait| wait.took).max().unwrap_or_default();
    let must_be_zero = [
        (verdict.lost, "changes lost"),
        (verdict.doubled, "applied twice"),
        (verdict.stale, "stale reads"),
        (verdict.split, "two histories"),
        (verdict.disordered, "out of order"),
        (verdict.lost_without_cause, "lost without a cause"),
    ];
    writeln!(out, "<div class=\"figures\">")?;
    for (value, what) in must_be_zero {
        let class = if value == 0 { "good" } else { "bad" };
        writeln!(out, "<div class=\"{class}\"><b>{}</b><span>{what}</span></div>", count(value))?;
    }
    let figures = [
        (count(verdict.requests), "requests"),
        (count(verdict.acknowledged), "changes acknowledged"),
        (count(verdict.sessions), "sessions"),
        (span(longest), "longest wait"),
        (count(verdict.run_again), "run again, applied once"),
        (count(verdict.reported_lost), "lost to two at once"),
    ];
    for (value, what) in figures {
        writeln!(out, "<div><b>{value}</b><span>{what}</span></div>")?;
    }
    writeln!(out, "</div>")
}

/// A column's heading; those of numbers are aligned to the right.
struct Column(&'static str, bool);

fn table(out: &mut String, columns: &[Column], rows: &[Vec<String>]) -> fmt::Result {
    write!(out, "<div class=\"wide\"><table>\n<tr>")?;
    for Column(name, is_number) in columns {
        write!(out, "<th{}>{name}</th>", if *is_number { " class=\"n\"" } else { "" })?;
    }
    writeln!(out, "</tr>")?;
    for row in rows {
        write!(out, "<tr>")?;
        for (Column(_, is_number), cell) in columns.iter().zip(row) {
            write!(out, "<td{}>{}</td>", if *is_number { " class=\"n\"" } else { "" }, Text(cell))?;
        }
        writeln!(out, "</tr>")?;
    }
    writeln!(out, "</table></div>")
}

fn waits_table(out: &mut String, verdict: &Verdict) -> fmt::Result {
    let columns = [
        Column("The longest wait of a client, by fault", false),
        Column("times", true),
        Column("p50", true),
        Column("p99", true),
        Column("longest", true),
    ];
    let rows: Vec<Vec<String>> = verdict
        .unavailable
        .iter()
        .map(|(kind, spans)| {
            let times = verdict.faults.get(kind).map_or_else(String::new, |times| count(*times));
            let name = if kind == "none" { "none, in calm" } else { kind };
            vec![name.to_owned(), times, span(spans.p50), span(spans.p99), span(spans.longest)]
        })
        .collect();
    table(out, &columns, &rows)
}

fn moves_table(out: &mut String, history: &History, series: &Series) -> fmt::Result {
    let peers = &history.peers;
    write!(out, "<div class=\"wide\"><table>\n<tr><th>moves from, to</th>")?;
    for peer in peers {
        write!(out, "<th class=\"n\">{}</th>", Text(peer))?;
    }
    writeln!(out, "<th class=\"n\">all</th></tr>")?;
    for (from, name) in peers.iter().enumerate() {
        write!(out, "<tr><td>{}</td>", Text(name))?;
        let of = |to: usize| series.moves_between.get(&(from, to)).copied().unwrap_or_default();
        for to in 0..peers.len() {
            let cell = if from == to { String::new() } else { count(of(to)) };
            write!(out, "<td class=\"n\">{cell}</td>")?;
        }
        let all: u64 = (0..peers.len()).map(of).sum();
        writeln!(out, "<td class=\"n\">{}</td></tr>", count(all))?;
    }
    writeln!(out, "</table></div>")
}

fn faults_table(out: &mut String, history: &History, waits: &[Wait]) -> fmt::Result {
    if history.faults.is_empty() {
        return Ok(());
    }
    let mut longest: BTreeMap<usize, (Micros, u64)> = BTreeMap::new();
    for wait in waits {
        let Some(fault) = wait.fault else { continue };
        let (known, unanswered) = longest.entry(fault).or_default();
        *known = wait.took.max(*known);
        *unanswered += u64::from(!wait.answered);
    }
    writeln!(out, "<h2>Faults</h2>")?;
    let columns = [
        Column("at", true),
        Column("fault", false),
        Column("peers", false),
        Column("what was done", false),
        Column("whole again", true),
        Column("longest wait", true),
        Column("given up", true),
    ];
    let rows: Vec<Vec<String>> = history
        .faults
        .iter()
        .enumerate()
        .map(|(at, fault)| {
            let (wait, unanswered) = longest.get(&at).copied().unwrap_or_default();
            let peers = if fault.peers.len() == history.peers.len() {
                "all".to_owned()
            } else {
                fault.peers.join(", ")
            };
            vec![
                format!("{:.1} s", fault.began as f64 / 1e6),
                fault.kind.clone(),
                peers,
                fault.what.clone(),
                span(fault.whole.saturating_sub(fault.ended)),
                span(wait),
                count(unanswered),
            ]
        })
        .collect();
    table(out, &columns, &rows)
}

fn failpoints_table(out: &mut String, verdict: &Verdict) -> fmt::Result {
    if verdict.failpoints.is_empty() {
        return Ok(());
    }
    writeln!(out, "<h2>Failpoints</h2>")?;
    let columns = [Column("point", false), Column("armed", true), Column("ended there", true)];
    let rows: Vec<Vec<String>> = verdict
        .failpoints
        .iter()
        .map(|(point, (times, tripped))| vec![point.clone(), count(*times), count(*tripped)])
        .collect();
    table(out, &columns, &rows)
}

fn errors_table(out: &mut String, verdict: &Verdict) -> fmt::Result {
    writeln!(
        out,
        "<h2>Errors that clients saw</h2>\n<p>{} without a fault that explains them.</p>",
        count(verdict.unexplained)
    )?;
    let columns = [
        Column("times", true),
        Column("error", false),
        Column("why a client may see it", false),
        Column("during", false),
    ];
    let mut errors: Vec<_> = verdict.errors.iter().collect();
    errors.sort_by_key(|(_, refusals)| std::cmp::Reverse(refusals.count));
    let rows: Vec<Vec<String>> = errors
        .into_iter()
        .map(|(what, refusals)| {
            let allowed = match refusals.allowed.as_str() {
                "" => "it may not",
                allowed => allowed,
            };
            let mut during: Vec<_> = refusals.during.iter().collect();
            during.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
            let during: Vec<String> =
                during.iter().map(|(kind, times)| format!("{kind} {}", count(**times))).collect();
            vec![count(refusals.count), what.clone(), allowed.to_owned(), during.join(", ")]
        })
        .collect();
    table(out, &columns, &rows)
}

/// A span of time as a person would say it.
fn span(micros: Micros) -> String {
    match micros {
        0..10_000 => format!("{:.1} ms", micros as f64 / 1e3),
        10_000..1_000_000 => format!("{:.0} ms", micros as f64 / 1e3),
        1_000_000..120_000_000 => format!("{:.2} s", micros as f64 / 1e6),
        _ => format!("{} min {:02} s", micros / 60_000_000, micros / 1_000_000 % 60),
    }
}

/// A number with its thousands set apart by a thin space.
fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::with_capacity(digits.len() * 2);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            grouped.push('\u{202f}');
        }
        grouped.push(digit);
    }
    grouped
}

#[cfg(test)]
mod tests;
