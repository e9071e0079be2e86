//! Every reason and refusal in one sentence for people.

use alloc::format;
use alloc::string::String;
use core::fmt;

use super::{Choice, Decision, Reason, Refusal, Standing};

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotReadyHere { state, .. } => {
                let state = state.as_str();
                write!(f, "the hop came for a copy that is not ready here, but {state}")
            }
            Self::Draining => f.write_str(
                "this peer is draining, and the app is neither ready nor starting elsewhere",
            ),
            Self::NotWoken { .. } => f.write_str(
                "the app is ready nowhere, and this request is one that does not start it",
            ),
            Self::Paused { .. } => f.write_str(
                "the app is paused on every peer that could run it, until an operator resumes it",
            ),
            Self::StartFailed { .. } => f.write_str(
                "the app did not start here, and it is neither ready nor starting elsewhere",
            ),
            Self::FailsElsewhere { paused, .. } => write!(
                f,
                "the app {} here, and does not start on the peers that may run it, as `warmhop \
                 status` explains there",
                if *paused { "is paused" } else { "never runs" }
            ),
            Self::WaitFull { waiting_max, .. } => {
                write!(
                    f,
                    "the app is ready nowhere, and {waiting_max} requests wait for it already"
                )
            }
            Self::WaitedTooLong { max_wait, .. } => {
                write!(
                    f,
                    "no peer had the app ready within the {max_wait:?} that a request may wait"
                )
            }
            Self::QueueFull { waiting_max, .. } => write!(
                f,
                "every copy serves as many requests as it may, and {waiting_max} wait for a place \
                 already"
            ),
            Self::BusyTooLong { max_wait, held_back: true, .. } => write!(
                f,
                "the client's other requests held as many places as one client may have for all of \
                 the {max_wait:?} that a request may wait"
            ),
            Self::BusyTooLong { max_wait, .. } => write!(
                f,
                "no copy had a free place within the {max_wait:?} that a request may wait"
            ),
            Self::NobodyAnswered { tried } => write!(
                f,
                "{tried} of the peers where the app should be ready could not take the request, \
                 and it is starting nowhere"
            ),
            Self::PinnedPeerUnreachable { peer } => {
                write!(
                    f,
                    "the session is in the memory of {peer}, which lives but cannot be reached"
                )
            }
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ReadyHere => f.write_str("the app is ready here"),
            Self::ReadyHereDraining => {
                f.write_str("the app is ready here, and a draining peer serves what still comes")
            }
            Self::PinnedHere => f.write_str("the session was made here, and the app is ready"),
            Self::PinnedThere { peer } => write!(f, "the session was made on {peer}"),
            Self::ReadyThere { peer, among, standing, choice, after, leaving } => {
                match after {
                    Some(first) => write!(f, "{first} could not take it; {peer} is ready")?,
                    None if *leaving => write!(f, "this peer is draining; {peer} is ready")?,
                    None => write!(f, "not ready here, but on {peer}")?,
                }
                write!(f, ", {}", choice_words(*choice, *among))?;
                f.write_str(match standing {
                    Standing::SameZone => "",
                    Standing::OtherZone => "; nobody of this zone is ready",
                    Standing::Draining => "; all that are ready are draining",
                    Standing::Suspect => "; all that are ready are suspected to be dead",
                })
            }
            Self::StartingHere { eta: Some(eta) } => {
                write!(f, "ready nowhere; the copy here should be ready in {eta:?}")
            }
            Self::StartingHere { eta: None } => {
                f.write_str("ready nowhere; the copy here is starting, for the first time")
            }
            Self::StartingElsewhere { peer, eta: Some(eta) } => {
                write!(f, "ready nowhere; the copy on {peer} should be ready in {eta:?}")
            }
            Self::StartingElsewhere { peer, eta: None } => {
                write!(f, "ready nowhere; the copy on {peer} is starting")
            }
            Self::BusyHere { peer, in_flight, other } => write!(
                f,
                "ready here, but busy ({in_flight} in flight); {peer} is less so ({other})"
            ),
            Self::NewerThere { peer, served } => write!(
                f,
                "version {served} has served the session; the copy here is older, that on {peer} is \
                 not"
            ),
            Self::UnheardVersion { served } => write!(
                f,
                "version {served} has served the session, and this peer has not heard of it yet"
            ),
            Self::BusyEverywhere => {
                f.write_str("every copy serves as many requests as it may; it waits for a place")
            }
            Self::TurnThere { peer, in_flight } => write!(
                f,
                "every copy serves as many requests as it may, {peer} {in_flight}; it waits for a \
                 place there, since it is next here"
            ),
            Self::BackingOff { starts_in } => write!(
                f,
                "ready nowhere; the last start here failed, and the next begins in {starts_in:?}"
            ),
            Self::NobodyStarts => {
                f.write_str("ready nowhere, and no start is under way here; another peer has to")
            }
            Self::Refused(refusal) => refusal.fmt(f),
        }
    }
}

fn choice_words(choice: Choice, among: usize) -> String {
    match choice {
        Choice::Only => "the only one".into(),
        Choice::BetterPlaced => {
            "better placed than the others: they are of another zone, draining or suspect".into()
        }
        Choice::LessBusy { in_flight, other } => {
            format!("the less busy of two drawn from {among} ({in_flight} in flight, {other})")
        }
        Choice::Nearer { latency_us, other: Some(other) } => {
            format!("the nearer of two drawn from {among} ({latency_us} µs, {other} µs)")
        }
        Choice::Nearer { latency_us, other: None } => {
            format!("the one linked ({latency_us} µs) of two drawn from {among}")
        }
        Choice::Drawn => format!("drawn from {among}"),
    }
}

impl fmt::Display for Decision {
    /// The whole reason in one sentence: a lost session, the reason itself, and what starts
    /// besides.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(peer) = &self.pin_lost {
            write!(f, "the session made on {peer} is gone, a fresh one begins; ")?;
        }
        self.reason.fmt(f)?;
        if self.start_here {
            f.write_str("; a start begins here")?;
        }
        match &self.ask_to_start {
            Some(peer) => write!(f, "; {peer} is asked to start it"),
            None => Ok(()),
        }
    }
}
