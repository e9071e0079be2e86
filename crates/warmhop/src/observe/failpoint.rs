//! Failpoints: moments of the session protocol at which a process under test dies as by SIGKILL.
//!
//! They exist in debug builds only. In a release build every function here is empty, and no call
//! site leaves a trace in the program.
//!
//! `NAME=kill@N[,NAME=kill@N…]`, handed to the builder, arms them when a peer starts: when the
//! process passes the point for the `N`-th time (from 1), it writes one line to stderr and aborts.
//! No destructor runs, nothing is flushed, no link is closed: to the others it is a process that
//! was killed, except for the signal's name.
//!
//! The decisions are made in the core, whose machines only return effects, so the points lie where
//! the runtime carries effects out: between two calls of a machine, or between a call and the
//! first of its effects. [`Point`] says for each what that means.
//!
//! Messages that were sent are with the links' own tasks and leave a moment later. The two points
//! that come after a send therefore hold their thread for [`LEAVES_WITHIN`] while the others run,
//! and then end the process; all other points end it at once, with none of that call's effects
//! carried out.

#[cfg(debug_assertions)]
use std::sync::OnceLock;
#[cfg(debug_assertions)]
use std::sync::atomic::{AtomicU64, Ordering};
#[cfg(debug_assertions)]
use std::time::Duration;

use warmhop_core::session::message::ExecDone;
use warmhop_core::session::{Effect, Outcome, Session};

/// A moment at which a process may be made to die.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(not(debug_assertions), expect(dead_code, reason = "nothing is armed in release"))]
pub(crate) enum Point {
    /// A request ran here for an owner elsewhere and this copy voted for its change; the reply that
    /// carries the vote is not written.
    ExecVoteBefore,
    /// The same, and the whole reply was written.
    ExecVoteAfter,
    /// A request's change is known to the session's owner, which has neither voted for nor proposed
    /// it. An executor may have voted.
    OwnerVoteBefore,
    /// The owner has voted for it, and its `Accept`s were handed to the links.
    OwnerVoteAfter,
    /// A change was chosen; the waiting response has not been released.
    ReleaseBefore,
    /// The seal of a change of members was chosen; its open form has not been sent.
    SealAfter,
    /// The open form was chosen; none of that call's effects was carried out.
    OpenAfter,
    /// A takeover's own record was chosen, in open form, and nothing was served from it yet.
    ReassertAfter,
}

impl Point {
    #[cfg(debug_assertions)]
    const ALL: [(Self, &'static str); 8] = [
        (Self::ExecVoteBefore, "exec.vote.before"),
        (Self::ExecVoteAfter, "exec.vote.after"),
        (Self::OwnerVoteBefore, "owner.vote.before"),
        (Self::OwnerVoteAfter, "owner.vote.after"),
        (Self::ReleaseBefore, "release.before"),
        (Self::SealAfter, "seal.after"),
        (Self::OpenAfter, "open.after"),
        (Self::ReassertAfter, "reassert.after"),
    ];

    #[cfg(debug_assertions)]
    fn name(self) -> &'static str {
        Self::ALL[self as usize].1
    }
}

/// How long the links have to put messages on the wire.
#[cfg(debug_assertions)]
const LEAVES_WITHIN: Duration = Duration::from_millis(5);

/// The pass at which each point ends the process; 0 if it is not armed.
#[cfg(debug_assertions)]
type Armed = [u64; Point::ALL.len()];

#[cfg(debug_assertions)]
static ARMED: OnceLock<Armed> = OnceLock::new();
#[cfg(debug_assertions)]
static PASSED: [AtomicU64; Point::ALL.len()] = [const { AtomicU64::new(0) }; Point::ALL.len()];

/// A text that arms no failpoint.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[error(
    "`{part}` arms no failpoint; write NAME=kill@N with N from 1, where NAME is one of {known}"
)]
pub struct FailpointError {
    /// The part that is malformed.
    pub part: String,
    /// The failpoints that there are.
    pub known: String,
}

/// Arms the failpoints in `points`, once for the whole process.
///
/// # Errors
/// If the text is malformed; with the malformed part, and all failpoints.
pub(crate) fn arm(points: Option<&str>) -> Result<(), FailpointError> {
    #[cfg(debug_assertions)]
    if let Some(points) = points {
        let armed = parse(points)?;
        if ARMED.set(armed).is_ok() {
            tracing::warn!(points, "failpoints are armed: this process will end by itself");
        }
    }
    #[cfg(not(debug_assertions))]
    let _ = points;
    Ok(())
}

#[cfg(debug_assertions)]
fn parse(text: &str) -> Result<Armed, FailpointError> {
    let mut armed = Armed::default();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let parsed = part.split_once('=').and_then(|(name, action)| {
            let at = Point::ALL.iter().position(|(_, known)| *known == name.trim())?;
            let pass: u64 = action.trim().strip_prefix("kill@")?.parse().ok()?;
            (pass > 0).then_some((at, pass))
        });
        let Some((at, pass)) = parsed else {
            let known: Vec<&str> = Point::ALL.iter().map(|(_, name)| *name).collect();
            return Err(FailpointError { part: part.to_owned(), known: known.join(", ") });
        };
        armed[at] = pass;
    }
    Ok(armed)
}

/// Passes a point if `is_reached`; does not return if it is armed for this pass.
#[inline]
pub(crate) fn pass_if(is_reached: bool, point: Point) {
    #[cfg(debug_assertions)]
    if is_reached
        && let Some(armed) = ARMED.get()
        && armed[point as usize] > 0
    {
        let pass = PASSED[point as usize].fetch_add(1, Ordering::Relaxed) + 1;
        if pass == armed[point as usize] {
            trip(point, pass);
        }
    }
    #[cfg(not(debug_assertions))]
    let _ = (is_reached, point);
}

#[cfg(debug_assertions)]
fn trip(point: Point, pass: u64) -> ! {
    if matches!(point, Point::ExecVoteAfter | Point::OwnerVoteAfter) {
        std::thread::sleep(LEAVES_WITHIN);
    }
    // It does not go through the log, which may be buffered, filtered or in another format.
    let line = format!("failpoint {}: the process ends at pass {pass}\n", point.name());
    let _ = std::io::Write::write_all(&mut std::io::stderr(), line.as_bytes());
    std::process::abort()
}

/// Whether the executor voted.
#[inline]
pub(crate) fn voted(done: &ExecDone) -> bool {
    matches!(done, ExecDone::Changed { voted: true, .. })
}

/// Whether its owner will vote for it.
#[inline]
pub(crate) fn changed(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Done(ExecDone::Changed { .. }))
}

/// The state of a machine before a call, to find out afterwards what the call has changed.
pub(crate) struct Before {
    #[cfg(debug_assertions)]
    owned: bool,
    #[cfg(debug_assertions)]
    version: u64,
    #[cfg(debug_assertions)]
    members: Option<u32>,
}

impl Before {
    #[inline]
    pub(crate) fn of(machine: &Session) -> Self {
        #[cfg(not(debug_assertions))]
        let _ = machine;
        Self {
            #[cfg(debug_assertions)]
            owned: machine.is_owner(),
            #[cfg(debug_assertions)]
            version: machine.version(),
            #[cfg(debug_assertions)]
            members: members(machine),
        }
    }

    /// Passes the points that the call has reached, before any of its effects is carried out.
    #[inline]
    pub(crate) fn passed(&self, machine: &Session, effects: &[Effect]) {
        #[cfg(debug_assertions)]
        {
            let chosen = self.owned && machine.is_owner() && machine.version() > self.version;
            let releases = effects.iter().any(|effect| matches!(effect, Effect::Release { .. }));
            pass_if(chosen && releases, Point::ReleaseBefore);
            // An owner uses the new members once their seal is chosen, and not before.
            let sealed = self.owned && machine.is_owner() && self.members < members(machine);
            pass_if(sealed, Point::SealAfter);
            let opened = |effect: &Effect| matches!(effect, Effect::Opened { .. });
            pass_if(effects.iter().any(opened), Point::OpenAfter);
            // The first round is the mint's, and an empty session reasserts nothing.
            let took_over =
                |effect: &Effect| matches!(effect, Effect::Owned { ballot } if ballot.round > 1);
            let reasserted = machine.version() > 0 && effects.iter().any(took_over);
            pass_if(reasserted, Point::ReassertAfter);
        }
        #[cfg(not(debug_assertions))]
        let _ = (machine, effects);
    }
}

/// How often the session's members have changed.
#[cfg(debug_assertions)]
fn members(machine: &Session) -> Option<u32> {
    machine.config().map(|cfg| cfg.now.c)
}

#[cfg(all(test, debug_assertions))]
mod tests {
    use super::*;

    #[test]
    fn points_are_armed_by_name_and_pass() {
        let armed = parse("seal.after=kill@3, release.before=kill@1").unwrap();
        assert_eq!(armed[Point::SealAfter as usize], 3);
        assert_eq!(armed[Point::ReleaseBefore as usize], 1);
        assert_eq!(armed.iter().filter(|pass| **pass > 0).count(), 2);
        assert_eq!(parse("").unwrap(), Armed::default());
    }

    #[test]
    fn each_point_stands_under_its_own_name() {
        for (at, (point, name)) in Point::ALL.iter().enumerate() {
            assert_eq!((*point as usize, point.name()), (at, *name));
        }
    }

    #[test]
    fn an_invalid_failpoint_is_refused_and_the_error_names_the_valid_ones() {
        let wrong = ["seal", "seal.after", "seal.after=panic@1", "seal.after=kill@0", "x=kill@1"];
        for part in wrong {
            let error = parse(&format!("open.after=kill@1,{part}")).unwrap_err();
            assert_eq!(error.part, part);
            let text = error.to_string();
            for (_, name) in Point::ALL {
                assert!(text.contains(name), "{text}");
            }
        }
    }
}
