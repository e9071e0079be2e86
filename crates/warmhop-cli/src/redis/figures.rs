//! Counters of the endpoint's commands and bytes, for `/metrics`.

use std::fmt::Write;
use std::sync::atomic::Ordering;

use super::cmd::{Spec, TABLE};
use super::counts::BYTES;
use super::loud;
use super::pubsub::TOO_SLOW;

/// The end of an OpenMetrics text.
const END: &str = "# EOF\n";

/// `metrics`, an OpenMetrics text, extended by the counters of the endpoint's commands.
#[must_use]
pub fn with_commands(metrics: String) -> String {
    let slow = BYTES.both().map(|_| TOO_SLOW.load(Ordering::Relaxed));
    with(metrics, &TABLE, &loud::all().counts(), BYTES.both(), slow)
}

fn with(
    metrics: String,
    table: &[Spec],
    not_offered: &[(String, String, u64)],
    bytes: Option<[u64; 2]>,
    slow_subscribers: Option<u64>,
) -> String {
    let mut samples = String::new();
    for spec in table {
        let command = spec.name.to_ascii_lowercase();
        for (outcome, count) in spec.counts.each() {
            // Writing to a string does not fail.
            let _ = writeln!(
                samples,
                "warmhop_redis_commands_total{{command=\"{command}\",outcome=\"{outcome}\"}} {count}"
            );
        }
    }
    let mut text = metrics;
    let had_end = text.ends_with(END);
    if had_end {
        text.truncate(text.len() - END.len());
    }
    let [received, sent] = bytes.map_or([None; 2], |both| both.map(Some));
    for (way, verb, count) in
        [("received", "that came from", received), ("sent", "that were sent to", sent)]
    {
        let (Some(count), name) = (count, format!("warmhop_redis_{way}_bytes")) else { continue };
        let help = format!("Bytes {verb} clients of the Redis endpoint");
        let _ = write!(
            text,
            "# HELP {name} {help}.\n# TYPE {name} counter\n# UNIT {name} bytes\n{name}_total {count}\n"
        );
    }
    if let Some(count) = slow_subscribers {
        let name = "warmhop_redis_slow_subscribers";
        let help =
            "Subscribers of the Redis endpoint that were disconnected because they read too slowly";
        let _ =
            write!(text, "# HELP {name} {help}.\n# TYPE {name} counter\n{name}_total {count}\n");
    }
    if !samples.is_empty() {
        let help = "Commands of clients of the Redis endpoint, by what they came to";
        let name = "warmhop_redis_commands";
        let _ = write!(text, "# HELP {name} {help}.\n# TYPE {name} counter\n{samples}");
    }
    if !not_offered.is_empty() {
        let help = "Commands that the Redis endpoint does not offer, by their client's library";
        let name = "warmhop_redis_not_offered";
        let _ = write!(text, "# HELP {name} {help}.\n# TYPE {name} counter\n");
    }
    for (command, library, count) in not_offered {
        let command = command.to_ascii_lowercase();
        let _ = writeln!(
            text,
            "warmhop_redis_not_offered_total{{command=\"{command}\",library=\"{library}\"}} {count}"
        );
    }
    if had_end {
        text.push_str(END);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redis::frame::Reply;

    #[test]
    fn commands_are_counted_by_what_they_came_to() {
        let table = ["GET", "SET", "DEL"].map(Spec::of_connection);
        table[0].counts.add(&Reply::Null);
        table[1].counts.add(&Reply::error("TRYAGAIN", "nothing was done"));
        table[1].counts.add(&Reply::error("WRONGTYPE", "it is a hash"));
        let not_offered = [("XADD".to_owned(), "redis-py".to_owned(), 3)];
        let text = with("a 1\n# EOF\n".to_owned(), &table, &not_offered, Some([5, 7]), Some(2));
        for line in [
            "warmhop_redis_received_bytes_total 5",
            "warmhop_redis_sent_bytes_total 7",
            "warmhop_redis_slow_subscribers_total 2",
            "warmhop_redis_commands_total{command=\"get\",outcome=\"refused\"} 0",
            "warmhop_redis_commands_total{command=\"get\",outcome=\"done\"} 1",
            "warmhop_redis_commands_total{command=\"set\",outcome=\"refused\"} 1",
            "warmhop_redis_commands_total{command=\"set\",outcome=\"try-again\"} 1",
            "warmhop_redis_not_offered_total{command=\"xadd\",library=\"redis-py\"} 3",
        ] {
            assert_eq!(text.lines().filter(|it| *it == line).count(), 1, "{line}: {text}");
        }
        assert!(text.starts_with("a 1\n") && text.ends_with(END));
        assert!(!text.contains("del"), "nobody has sent it: {text}");
        assert_eq!(with("# EOF\n".to_owned(), &[], &[], None, None), END, "nothing was asked");
    }
}
