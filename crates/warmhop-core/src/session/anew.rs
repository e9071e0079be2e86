//! How one of two members goes on with a session that a key names while the other is silent.
//!
//! A client's session goes on under another id, which its next token names ([`Session::mint_from`]). A key
//! has one id only. A second id would be known to this peer alone, and what was written under it would be
//! gone with this process. So the session begins anew under its own id, in a configuration of this peer
//! alone, from the record that it holds.
//!
//! The former configuration chooses nothing any more: each of its majorities needs this peer, which votes
//! in it no longer. The new one has a higher stamp, as has one that is begun after the former was over, so
//! that whoever finds both goes on from the new one. The other of two may have gone on alone as well, if
//! the link between them was cut: then one of the two histories is dropped once they meet, which a mesh of
//! two accepts by serving at either side ([`alone`](super::entry::alone)). The one with fewer changes is
//! dropped, so that one peer's changes do not give way to what the other only read; of two with as many, the
//! one of the lower ballot.

use alloc::boxed::Box;
use alloc::sync::Arc;

use super::message::{Config, Members, Record};
use super::owner::Owner;
use super::{Ctx, Effects, Role, Seldom, Session};
use crate::ids::{Ballot, Incarnation, Position};

impl Session {
    /// Begins the session anew from this peer's own copy, without its other members, unless its record is
    /// no longer the one at `p`. Requests wait until the record is chosen. Returns whether it did.
    pub fn begin_anew(&mut self, ctx: &mut Ctx<'_>, p: Position, out: &mut Effects) -> bool {
        let Some(held) = self.copy.accepted.clone().filter(|record| record.p == p) else {
            return false;
        };
        if self.fenced().is_some() {
            return false;
        }
        let round = self.seen_round().max(ctx.process.round_ctr).saturating_add(1);
        ctx.process.round_ctr = round;
        let b = Ballot { round, proposer: ctx.me };
        if self.is_owner() {
            self.step_down(ctx, b, out);
        }
        let former = held.cfg.now.stamp.max(self.copy.stamp_hi);
        let stamp = former.saturating_add(1).max(ctx.wall.0).max(ctx.process.stamp_to_begin());
        let cfg = Arc::new(Config { now: Members::first(stamp, [ctx.me]), prev: None });
        self.heard = Seldom::default();
        let mut owner = Owner::succeeding(b, &held);
        owner.cfg = Arc::clone(&cfg);
        self.role = Role::Owner(Box::new(owner));
        self.reassert(ctx, Record { cfg, ..held }, out);
        true
    }

    /// Compares the history that this peer went on with alone to that of `from`, which did the same and holds
    /// a record at `at`. If the other is the better one, this peer gives up its own, and takes the session
    /// over as `from` holds it. If not, it makes sure that `from` gives way to its ballot. Returns whether
    /// anything was done.
    pub(super) fn meets_other_history(
        &mut self,
        ctx: &mut Ctx<'_>,
        from: Incarnation,
        at: Position,
        cfg: &Arc<Config>,
        out: &mut Effects,
    ) -> bool {
        let Some(held) = &self.copy.accepted else { return false };
        let is_of_one = |cfg: &Config, peer| cfg.prev.is_none() && *cfg.now.who == [peer];
        if !is_of_one(&held.cfg, ctx.me) || !is_of_one(cfg, from) {
            return false;
        }
        let mine = held.p;
        if (mine.n, mine.ballot) > (at.n, at.ballot) {
            // The other would refuse what this peer proposes: it promised more, or went on later.
            let is_earlier = held.cfg.now.stamp <= cfg.now.stamp;
            let is_refused =
                self.ballot().is_some_and(|b| is_earlier || self.heard.owner > Some(b));
            if is_refused {
                self.copy.note_stamps(cfg);
            }
            return is_refused && self.begin_anew(ctx, mine, out);
        }
        if let Some(by) = self.ballot() {
            self.step_down(ctx, by, out);
        }
        self.copy.drop_history();
        self.heard.cfg = Some(Arc::clone(cfg));
        let round = self.seen_round().max(at.ballot.round);
        self.take_over(ctx, Some(Config::clone(cfg)), round, &[from], out);
        true
    }
}
