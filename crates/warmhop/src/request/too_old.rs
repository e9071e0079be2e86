//! A request that was sent to a copy because of its version, after the copy has lost that version:
//! a request may overtake the news that a version was rolled back.
//!
//! A peer that chose a copy because of its version says so with the request. If the copy is older,
//! its peer refuses the request and sends its news along, by which the sender decides again.

use std::sync::Arc;

use warmhop_core::config::AppPolicy;
use warmhop_core::ids::PeerId;
use warmhop_core::route::counts_on;
use warmhop_core::version::AppVersion;
use warmhop_core::view::News;

use crate::app::slot::{Copy, InFlight, NoEntry, Slot};
use crate::hop::HopRefusal;
use crate::request::call::Call;
use crate::request::local_error::LocalError;
use crate::request::node::Node;

/// Whether the copy here is older than a request requires.
pub(super) fn is_too_old(slot: &Slot, counted_on: Option<&AppVersion>) -> bool {
    counted_on.is_some_and(|it| slot.version().is_some_and(|here| it.is_newer_than(&here)))
}

impl Call {
    /// Begins at the copy here, if that takes it.
    pub(super) fn enters(&mut self, slot: &Arc<Slot>) -> Result<(Arc<Copy>, InFlight), LocalError> {
        if let Some(entered) = self.entered.take() {
            return Ok(entered);
        }
        let is_use = |policy: &AppPolicy| self.wakes(&policy.wake);
        let (copy, guard) = slot.enter(is_use, self.waits.flow).map_err(|why| match why {
            NoEntry::Full => LocalError::Busy,
            NoEntry::NotReady => LocalError::NotReady,
        })?;
        let is_older = |it: &AppVersion| copy.version.as_ref().is_some_and(|o| it.is_newer_than(o));
        if self.counts_on.as_ref().is_some_and(is_older) {
            return Err(LocalError::Older);
        }
        self.waits.enters();
        Ok((copy, guard))
    }
}

impl Node {
    /// The version that a request requires at another peer.
    pub(super) fn counts_on(&self, slot: &Slot, to: &PeerId, call: &Call) -> Option<AppVersion> {
        let served = call.version.as_ref()?;
        let view = self.view();
        let there = view.peer(to)?.apps.get(slot.name())?.news.version.as_ref();
        counts_on(Some(served), there).cloned()
    }

    /// The refusal for a peer that required a newer copy.
    pub(super) fn refusal_of_older(&self, slot: &Slot) -> HopRefusal {
        // A copy serves a moment before its news is sent.
        slot.announce();
        let news = self.net.own_news_of(slot.name());
        news.map_or(HopRefusal::NotReady, |news| HopRefusal::Older(Box::new(news)))
    }

    /// Takes the news that came with a refusal.
    pub(super) fn learns_version(&self, slot: &Slot, from: &PeerId, why: &HopRefusal) {
        if let HopRefusal::Older(news_sent) = why
            && let News::App { peer, news, .. } = &**news_sent
            && (peer, &news.app) == (from, slot.name())
        {
            self.apply((**news_sent).clone(), true);
        }
    }
}
