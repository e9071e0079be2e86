//! Whether the peer that claims a session owns it: its members ask before they rest.
//!
//! A promise shows who wanted the session last, not who owns it: a takeover that finds no majority
//! leaves a promise and owns nothing. A member that rests on such a claim waits for an owner that
//! does not exist, and the claimant waits for the owner that stepped down for it. So members ask
//! the claimant ([`Session::ask_claimant`]), and its answer ([`Part`]) decides (`repair.rs`). An
//! answer is a hint: acting on a wrong one costs a ballot and does no harm.

use super::message::{Message, Part};
use super::{Effect, Effects, NO_NONCE, Role, Session};
use crate::ids::{Ballot, Incarnation, Now};

/// A question to the claimant, from when it is asked until the members that asked rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Question {
    /// The highest claim known then: a higher one needs a new question.
    about: Ballot,
    asked: Now,
    answered: Option<(Part, Now)>,
}

/// The state of the peer with the highest claim to a session, as far as it is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Claimant {
    /// Unknown: it was not asked.
    Unasked,
    /// It has not answered, or is about to own the session; it was last asked at this time.
    Unsure(Now),
    /// It owns the session.
    Owns,
    /// It answered at this time that it does not own the session, and does not try to.
    Vacant(Now),
}

impl Session {
    /// This peer's part in the session.
    #[must_use]
    pub fn part(&self) -> Part {
        match &self.role {
            Role::None => Part::None,
            Role::Owner(owner) if owner.serving => Part::Owner(owner.b),
            Role::Owner(owner) => Part::Trying(owner.b),
            Role::Preparing(takeover) => Part::Trying(takeover.b),
        }
    }

    /// The highest known ballot, whether its proposer is alive or not.
    #[must_use]
    pub fn highest_claim(&self) -> Option<Ballot> {
        self.copy.promised().max(self.heard.owner).max(self.ballot())
    }

    /// Asks the peer with the highest claim whether it owns the session.
    pub fn ask_claimant(&mut self, now: Now, out: &mut Effects) {
        let Some(claim) = self.highest_claim() else { return };
        let to = claim.proposer;
        let answered =
            self.heard.question.filter(|it| it.about == claim).and_then(|it| it.answered);
        self.heard.question = Some(Question { about: claim, asked: now, answered });
        out.push(Effect::Send {
            to,
            message: Message::Locate { census: None, nonce: NO_NONCE, bytes: 0 },
        });
    }

    /// Takes the answer of `from` about its part in the session.
    pub(super) fn on_part(&mut self, from: Incarnation, part: Part, now: Now) {
        if let Part::Trying(b) | Part::Owner(b) = part {
            self.heard.note_owner(b);
        }
        let Some(highest) = self.highest_claim().filter(|claim| claim.proposer == from) else {
            return;
        };
        if let Some(question) = self.heard.question.as_mut().filter(|it| it.about.proposer == from)
        {
            let repeats = question.about == highest
                && matches!((question.answered, part), (Some((Part::None, _)), Part::None));
            question.about = highest;
            // The first report of a vacancy counts: from then on the members wait for each other.
            if !repeats {
                question.answered = Some((part, now));
            }
        }
    }

    /// The answer of the peer with the highest claim, as far as it was asked.
    #[must_use]
    pub fn claimant(&self) -> Claimant {
        let Some(claim) = self.highest_claim() else { return Claimant::Unasked };
        match self.heard.question {
            Some(question) if question.about == claim => match question.answered {
                Some((Part::Owner(b), _)) if b >= claim => Claimant::Owns,
                // It answered at a lower ballot than its own highest: it has tried again since, and
                // failed.
                Some((Part::None | Part::Owner(_), at)) => Claimant::Vacant(at),
                Some((Part::Trying(_), _)) | None => Claimant::Unsure(question.asked),
            },
            _ => Claimant::Unasked,
        }
    }

    /// Drops the question: nothing is to be asked any more.
    pub fn rest(&mut self) {
        self.heard.question = None;
        self.tidy();
    }
}
