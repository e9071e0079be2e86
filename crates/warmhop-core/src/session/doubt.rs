//! A copy whose time is over asks whether what it holds is all there was, before it forgets.
//!
//! A member that was cut off while the others wrote holds an older record, and that record's end is not the
//! session's. What it forgets by it is its vote in a configuration in which the session goes on: if one of
//! those that hold the newer record dies then, the others are no majority, and an answered change is lost
//! although only one of its holders is.
//!
//! So a member that does not hear everyone, or did not until a moment ago, forgets a record only once a
//! majority of the members, itself included, holds nothing newer. Each newer record that was chosen is
//! held by one of every majority, so that one of them would have reported it. Nothing is chosen on the old one
//! any more: its owner stops before its members forget it ([`LONGER_THAN_OWNER`]). Where no majority
//! answers, the record is kept for the time of a session that is not used, and no longer.

use alloc::collections::BTreeSet;
use alloc::sync::Arc;

use super::message::{Config, Members, Message};
use super::reach::may_go_on_alone;
use super::{Ctx, Effect, Effects, LONGER_THAN_OWNER, Resend, Session};
use crate::ids::{Incarnation, Now, Position, WallTime};

/// A question to the other members about a record whose time is over.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Doubt {
    about: Position,
    nonce: u64,
    /// The members that hold nothing newer.
    agree: BTreeSet<Incarnation>,
    resend: Resend,
    /// When it is forgotten in any case.
    until: WallTime,
}

impl Doubt {
    /// The record that it is about.
    pub(super) fn about(&self) -> Position {
        self.about
    }

    /// When to ask again.
    pub(super) fn wake(&self) -> Now {
        self.resend.at
    }
}

impl Session {
    /// Whether the held record, whose time is over, may be forgotten. If the others may hold a newer one,
    /// they are asked.
    pub(super) fn is_all_there_was(&mut self, ctx: &mut Ctx<'_>, out: &mut Effects) -> bool {
        let Some(record) = &self.copy.accepted else { return true };
        let (about, cfg) = (record.p, Arc::clone(&record.cfg));
        let is_asked = self.heard.doubt.as_ref().is_some_and(|doubt| doubt.about == about);
        if !is_asked && !self.has_missed_others(ctx) {
            return true;
        }
        if !is_asked {
            let doubt = Doubt {
                about,
                nonce: ctx.process.next_nonce(),
                agree: BTreeSet::new(),
                resend: Resend::new(ctx),
                until: ctx.wall.after(ctx.policy.ttl),
            };
            self.heard.doubt = Some(doubt);
        }
        let agreed = |set: &Members| {
            let agree = self.heard.doubt.as_ref().map(|doubt| &doubt.agree);
            set.majority(|peer| peer == ctx.me || agree.is_some_and(|all| all.contains(&peer)))
        };
        let mine = || cfg.sets().filter(|set| set.contains(ctx.me));
        if mine().all(agreed) || cfg.sets().any(|set| self.is_beyond_hope(set)) {
            return true;
        }
        let Some(doubt) = &mut self.heard.doubt else { return true };
        if doubt.until <= ctx.wall {
            return true;
        }
        if !is_asked || doubt.resend.due(ctx) {
            let message = Message::Locate { census: None, nonce: doubt.nonce, bytes: 0 };
            let asked = cfg.everyone().into_iter();
            let open = asked.filter(|peer| *peer != ctx.me && !doubt.agree.contains(peer));
            let ask = |to| Effect::Send { to, message: message.clone() };
            out.extend(open.map(ask));
        }
        false
    }

    /// Whether others may hold something newer, since this peer does not hear everyone, or did not until
    /// a moment ago. It does not matter to one that may go on alone.
    fn has_missed_others(&self, ctx: &Ctx<'_>) -> bool {
        let census = &ctx.process.census;
        !may_go_on_alone(ctx)
            && self.copy.seldom.fenced.is_none()
            && (!census.silent.is_empty() || census.is_behind)
    }

    /// Whether the owner, whose session is past its time, may know less of it than the other members.
    pub(super) fn may_know_less(&self, ctx: &Ctx<'_>) -> bool {
        let Some(record) = &self.copy.accepted else { return false };
        let is_cut_off = !may_go_on_alone(ctx) && self.is_unheard(ctx, &record.cfg);
        self.heard.doubt.is_some() || is_cut_off
    }

    /// Takes the answer of a member, which holds a `record`.
    pub(super) fn doubt_answered(
        &mut self,
        ctx: &mut Ctx<'_>,
        from: Incarnation,
        nonce: u64,
        record: Option<(Position, &Arc<Config>)>,
    ) {
        let Some(doubt) = self.heard.doubt.as_ref().filter(|doubt| doubt.nonce == nonce) else {
            return;
        };
        let about = doubt.about;
        // Where this peer is no member any more, its vote does not matter.
        let is_newer = record.is_some_and(|(p, cfg)| p > about && cfg.contains(ctx.me));
        let again = is_newer.then(|| ctx.process.next_nonce());
        let Some(doubt) = &mut self.heard.doubt else { return };
        if let Some(nonce) = again {
            // It is sent what it missed, or asks again.
            doubt.nonce = nonce;
            doubt.agree.clear();
            doubt.resend = Resend::new(ctx);
            doubt.until = ctx.wall.after(ctx.policy.ttl);
            let grace = ctx.policy.forget_grace + LONGER_THAN_OWNER;
            self.copy.keep_until(ctx.wall, grace);
        } else {
            doubt.agree.insert(from);
            doubt.resend.at = ctx.now;
        }
    }
}
