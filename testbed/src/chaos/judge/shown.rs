//! A verdict as it is printed.

use std::fmt;

use super::Verdict;
use crate::chaos::history::Micros;

const ERRORS_SHOWN_MAX: usize = 10;
/// As much as a key's history takes.
const EXAMPLE_CHARS_MAX: usize = 6000;

fn seconds(micros: Micros) -> f64 {
    micros as f64 / 1e6
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} requests of {} sessions in {:.0} s; {} answered, {} appends acknowledged, {} run \
             again inside; seed {}",
            self.requests,
            self.sessions,
            seconds(self.length),
            self.answered,
            self.acknowledged,
            self.run_again,
            self.seed
        )?;
        self.show_faults(f)?;
        self.show_errors(f)?;
        self.show_lost(f)?;
        self.show_keys(f)
    }
}

impl Verdict {
    fn show_faults(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\n  {:<12} {:>6}   a client's longest wait", "fault", "times")?;
        for (kind, spans) in &self.unavailable {
            let times = self.faults.get(kind).map_or_else(|| "-".to_owned(), u64::to_string);
            writeln!(
                f,
                "  {kind:<12} {times:>6}   p50 {:>6.2} s  p99 {:>6.2} s  longest {:>6.2} s",
                seconds(spans.p50),
                seconds(spans.p99),
                seconds(spans.longest)
            )?;
        }
        if !self.failpoints.is_empty() {
            let points = self.failpoints.iter();
            let points: Vec<String> =
                points.map(|(point, (times, done))| format!("{point} {done}/{times}")).collect();
            writeln!(f, "\n  failpoints, ended there / armed")?;
            for line in points.chunks(4) {
                writeln!(f, "  {}", line.join("   "))?;
            }
        }
        Ok(())
    }

    fn show_errors(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\n  errors that clients saw, and why they may")?;
        let mut errors: Vec<_> = self.errors.iter().collect();
        errors.sort_by_key(|(_, refusals)| std::cmp::Reverse(refusals.count));
        for (what, refusals) in errors.iter().take(ERRORS_SHOWN_MAX) {
            let allowed = match refusals.allowed.as_str() {
                "" => "NOT ALLOWED",
                allowed => allowed,
            };
            let mut during: Vec<_> = refusals.during.iter().collect();
            during.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
            let during: Vec<String> =
                during.iter().map(|(kind, count)| format!("{kind} {count}")).collect();
            writeln!(f, "  {:>6}  {what}: {allowed}", refusals.count)?;
            writeln!(f, "          {}", during.join(", "))?;
        }
        if errors.len() > ERRORS_SHOWN_MAX {
            let rest = errors.iter().skip(ERRORS_SHOWN_MAX);
            let count: u64 = rest.map(|(_, refusals)| refusals.count).sum();
            writeln!(f, "  {count:>6}  of {} other sorts", errors.len() - ERRORS_SHOWN_MAX)?;
        }
        writeln!(f, "  {:>6}  unexplained", self.unexplained)
    }

    fn show_lost(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let causes: Vec<String> =
            self.lost_to.iter().map(|(fault, count)| format!("{count} to {fault}")).collect();
        writeln!(
            f,
            "\n  sessions reported lost with a cause: {}{}{}; without: {}",
            self.reported_lost,
            if causes.is_empty() { "" } else { ", " },
            causes.join(", "),
            self.lost_without_cause
        )?;
        if let Some(why) = &self.cut_short {
            writeln!(f, "  ! cut short: {why}")?;
        }
        for example in &self.examples {
            let short: String = example.chars().take(EXAMPLE_CHARS_MAX).collect();
            writeln!(f, "  ! {short}")?;
        }
        Ok(())
    }

    /// What was found of keys and idle sessions, and the sums.
    fn show_keys(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (keys, operations) = self.keys;
        writeln!(
            f,
            "\n  {operations} operations on {keys} keys; too long to judge: {}",
            self.keys_undecided
        )?;
        for (error, during) in &self.key_errors {
            let during: Vec<String> =
                during.iter().map(|(kind, count)| format!("{kind} {count}")).collect();
            writeln!(f, "  {error:>10}  {}", during.join(", "))?;
        }
        writeln!(
            f,
            "  {} idle sessions were looked after; sessions that never held anything: {} times \
             called lost, {} times refused for want of a majority",
            self.idle, self.lost_nothing, self.refused_nothing
        )?;
        let ((holds, shared), (let_in, too_many)) = (self.locks, self.let_in);
        writeln!(f, "  {holds} times a lock was held, {let_in} times a limiter let somebody in")?;
        write!(f, "\n  keys without an order {}   orphaned {}", self.keys_broken, self.orphaned)?;
        write!(f, "   locks held by two {shared}   let in too many {too_many}")?;
        write!(
            f,
            "\n  lost {}   doubled {}   stale {}   two histories {}   out of order {}",
            self.lost, self.doubled, self.stale, self.split, self.disordered
        )
    }
}
