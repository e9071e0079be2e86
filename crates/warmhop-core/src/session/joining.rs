//! Asks a newcomer on which every later majority depends whether it is there before it joins.
//!
//! A seal is chosen by the members before it, and from then on nothing is chosen without a majority
//! of the new ones. Of three new members any one may be gone; of two none. If a sole member added a
//! peer that had died a moment ago, and was not missed yet, the session would be lost.

use super::message::{Config, Message};
use super::{Ctx, Effect, Effects, Role, Session};
use crate::ids::Incarnation;

/// A change of members that waits for an answer of its newcomer.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Joining {
    gone: Option<Incarnation>,
    newcomer: Incarnation,
    nonce: u64,
}

impl Session {
    /// Asks the newcomer first if `cfg` has no majority without it. A peer that wants the change
    /// requests it again for as long as no answer comes. Returns whether it was asked.
    pub(super) fn asks_newcomer(
        &mut self,
        ctx: &mut Ctx<'_>,
        cfg: &Config,
        gone: Option<Incarnation>,
        newcomer: Option<Incarnation>,
        out: &mut Effects,
    ) -> bool {
        let Role::Owner(owner) = &mut self.role else { return false };
        let before = cfg.prev.as_deref();
        let joins =
            |peer: &Incarnation| *peer != ctx.me && before.is_some_and(|it| !it.contains(*peer));
        let Some(newcomer) = newcomer.filter(joins).filter(|_| cfg.now.who.len() == 2) else {
            return false;
        };
        let nonce = ctx.process.next_nonce();
        owner.work.joining = Some(Joining { gone, newcomer, nonce });
        out.push(Effect::Send { to: newcomer, message: Message::Locate { census: None, nonce } });
        true
    }

    /// Notes an answer of `from`: a change of members that waits for it proceeds.
    pub(super) fn newcomer_answered(
        &mut self,
        ctx: &mut Ctx<'_>,
        from: Incarnation,
        nonce: u64,
        out: &mut Effects,
    ) {
        let Role::Owner(owner) = &mut self.role else { return };
        let answers = |it: &mut Joining| it.newcomer == from && it.nonce == nonce;
        let Some(Joining { gone, newcomer, .. }) = owner.work.joining.take_if(answers) else {
            return;
        };
        if let Some(cfg) = self.seal_of(ctx, gone.as_slice(), Some(newcomer)) {
            self.seal(ctx, cfg, out);
        }
    }
}
