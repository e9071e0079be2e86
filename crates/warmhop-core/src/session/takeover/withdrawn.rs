//! A takeover by which an owner takes back a change of its own, for which too few members have room.

use super::Takeover;
use crate::ids::Incarnation;
use crate::session::Session;
use crate::session::mutant::{self, Mutant};
use crate::session::owner::Withdrawn;

/// Whether the change can be taken back.
#[derive(Debug)]
pub(super) enum Withdrawal<'t> {
    /// There is none, or it may have been chosen: the takeover goes on as any does.
    None,
    /// Not all members have promised yet that may hold it.
    Waits,
    /// It was not chosen, and will not be.
    Possible(&'t Withdrawn),
}

impl Session {
    /// Whether the change that `takeover` takes back can have been chosen. It cannot if those that hold it, and
    /// those that have not promised yet and may, are no majority: the others have promised a higher ballot
    /// without it.
    pub(super) fn withdrawal<'t>(&self, takeover: &'t Takeover) -> Withdrawal<'t> {
        let Some(withdrawn) = &takeover.withdrawn else { return Withdrawal::None };
        let set = &withdrawn.cfg.now;
        let is_above =
            |it: &super::Promised| it.accepted.as_ref().is_some_and(|info| info.p > withdrawn.p);
        if takeover.promises.values().any(is_above) {
            return Withdrawal::None;
        }
        let holds = |peer: Incarnation| {
            let promised = takeover.promises.get(&peer);
            let accepted = promised.and_then(|it| it.accepted.as_ref());
            accepted.is_some_and(|info| info.p == withdrawn.p)
        };
        let has_promised = |peer: Incarnation| takeover.covered_by(peer, set);
        let may_hold = |peer: Incarnation| {
            holds(peer) || !has_promised(peer) && !mutant::on(Mutant::WithdrawEarly)
        };
        if !set.majority(may_hold) {
            return Withdrawal::Possible(withdrawn);
        }
        let waits = !set.who.iter().all(|it| has_promised(*it)) && !takeover.has_waited();
        if waits { Withdrawal::Waits } else { Withdrawal::None }
    }
}
