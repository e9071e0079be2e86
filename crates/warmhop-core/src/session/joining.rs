//! Asks a peer on which every later majority depends whether it is there, and has room for a copy, before a
//! change of members makes it so.
//!
//! A seal is chosen by the members before it, and from then on nothing is chosen without a majority
//! of the new ones. Of three new members any one may be gone; of two none. If a sole member added a
//! peer that had died a moment ago, and was not missed yet, the session would be lost. If two of three
//! members left out the one that leaves, and the third had died a moment ago, the last one could
//! serve the session only once the third is known to be gone for good.

use alloc::sync::Arc;
use core::time::Duration;

use super::message::{Config, Message};
use super::{Ctx, Effect, Effects, Role, Session};
use crate::ids::{Incarnation, Now, Position};

/// How long an answer to a question is waited for, which is repeated meanwhile, and how long it proves that
/// the peer is there if requests keep the change from being made at once.
const ANSWER_COUNTS_FOR: Duration = Duration::from_secs(1);

/// A change of members that waits for an answer of the one other member that remains. If that peer has no
/// room, the change is not made.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Joining {
    gone: Option<Incarnation>,
    newcomer: Option<Incarnation>,
    asked: Incarnation,
    nonce: u64,
    /// When it was asked.
    since: Now,
    /// When it answered.
    answered: Option<Now>,
}

impl Joining {
    pub(super) fn is_answered(&self) -> bool {
        self.answered.is_some()
    }

    /// Whether the question, or the answer to it, is too old to tell anything.
    fn is_outdated(&self, now: Now) -> bool {
        now.since(self.answered.unwrap_or(self.since)) >= ANSWER_COUNTS_FOR
    }
}

impl Session {
    /// Asks the other of two members first if `cfg` has no majority without it and the members
    /// before have one. A peer that wants the change requests it again for as long as no answer comes.
    /// Returns whether it was asked.
    pub(super) fn asks_first(
        &mut self,
        ctx: &mut Ctx<'_>,
        cfg: &Config,
        gone: Option<Incarnation>,
        newcomer: Option<Incarnation>,
        out: &mut Effects,
    ) -> bool {
        let Role::Owner(owner) = &mut self.role else { return false };
        let before = cfg.prev.as_deref();
        let is_new = |peer: &Incarnation| before.is_some_and(|it| !it.contains(*peer));
        let was_spared = before.is_some_and(|it| it.who.len() > 2);
        let mut others = cfg.now.who.iter().copied().filter(|peer| *peer != ctx.me);
        let needed = match (cfg.now.who.len(), others.next(), others.next()) {
            (2, Some(other), None) => Some(other).filter(|peer| is_new(peer) || was_spared),
            (2, ..) => newcomer.filter(is_new),
            _ => None,
        };
        let Some(asked) = needed.filter(|peer| *peer != ctx.me) else { return false };
        let before = owner.work.joining.take();
        let lately = before.filter(|it| it.asked == asked && !it.is_outdated(ctx.now));
        let made = Joining { gone, newcomer, asked, nonce: 0, since: ctx.now, answered: None };
        let joining = match lately {
            Some(before) => Joining { gone, newcomer, ..before },
            None => Joining { nonce: ctx.process.next_nonce(), ..made },
        };
        let (nonce, is_answered) = (joining.nonce, joining.answered.is_some());
        owner.work.joining = Some(joining);
        if is_answered {
            return false;
        }
        let bytes = owner.chosen.as_ref().map_or(0, |record| record.body.bytes());
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        out.push(Effect::Send {
            to: asked,
            message: Message::Locate { census: None, nonce, bytes },
        });
        true
    }

    /// Gives up a change of members that would need `from`, which has no room for a copy. Returns whether
    /// there was one.
    pub(super) fn asked_refused(&mut self, from: Incarnation) -> bool {
        let Role::Owner(owner) = &mut self.role else { return false };
        if owner.work.joining.as_ref().is_none_or(|it| it.asked != from) {
            return false;
        }
        owner.work.joining = None;
        true
    }

    /// Notes an answer of `from`, which holds a `record`: a change of members that waits for it proceeds, unless something is
    /// under way; then it does when it is requested again.
    pub(super) fn asked_answered(
        &mut self,
        ctx: &mut Ctx<'_>,
        from: Incarnation,
        nonce: u64,
        record: Option<(Position, &Arc<Config>)>,
        out: &mut Effects,
    ) {
        if let Some((at, cfg)) = record
            && self.meets_other_history(ctx, from, at, cfg, out)
        {
            return;
        }
        let Role::Owner(owner) = &mut self.role else { return };
        let answers = |it: &&mut Joining| it.asked == from && it.nonce == nonce;
        let Some(joining) = owner.work.joining.as_mut().filter(answers) else { return };
        joining.answered = Some(ctx.now);
        let (gone, newcomer) = (joining.gone, joining.newcomer);
        if let Some(cfg) = self.seal_of(ctx, gone.as_slice(), newcomer) {
            self.seal(ctx, cfg, out);
        }
    }
}
