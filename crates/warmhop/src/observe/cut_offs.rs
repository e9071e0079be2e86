//! Answers that were cut off after their head: counted by app, and logged, since their status says
//! that all went well.

use std::fmt;
use std::sync::Arc;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use tracing::info;
use warmhop_core::ids::{AppName, PeerId, RequestId};

use crate::observe::labels::ByApp;
use crate::observe::lines::Lines;
use crate::observe::recall::Traces;

/// What a peer knows of the answers that were cut off. Clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct CutOffs {
    by_app: Family<ByApp, Counter>,
    /// An app that dies cuts off all that it was answering.
    lines: Arc<Lines>,
    /// What is remembered of the requests.
    pub(crate) traces: Arc<Traces>,
}

/// An answer that was cut off.
pub(crate) struct CutOff<'a> {
    pub(crate) id: &'a RequestId,
    pub(crate) app: &'a AppName,
    /// The way of a client's request, or `hop received`.
    pub(crate) way: &'static str,
    /// The peer that ran it, if it is known.
    pub(crate) peer: Option<&'a PeerId>,
    /// The peer that sent the request here, if one did.
    pub(crate) from: Option<&'a PeerId>,
    /// How many bytes of its body had come.
    pub(crate) bytes: u64,
}

impl CutOffs {
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let cut_offs = Self::default();
        registry.register(
            "answers_cut_off",
            "Answers whose body broke off after their head, by app",
            cut_offs.by_app.clone(),
        );
        cut_offs
    }

    /// Begins an app's series at 0.
    pub(crate) fn begin(&self, app: &AppName) {
        let _ = self.by_app.get_or_create(&ByApp { app: app.to_string() });
    }

    /// Counts a client's answer that was cut off, logs it, and adds it to the request's trace.
    pub(crate) fn note(&self, what: &CutOff<'_>, reason: &dyn fmt::Display) {
        self.by_app.get_or_create(&ByApp { app: what.app.to_string() }).inc();
        self.log(what, reason);
        self.traces.cut_off(what.id, broke_off(what.bytes, reason));
    }

    /// How many of an app's answers were cut off.
    pub(crate) fn of(&self, app: &AppName) -> u64 {
        let counter = self.by_app.get(&ByApp { app: app.to_string() });
        counter.map_or(0, |counter| counter.get())
    }

    /// Logs an answer that was cut off, unless there have just been many.
    pub(crate) fn log(&self, what: &CutOff<'_>, reason: &dyn fmt::Display) {
        let CutOff { id, app, way, peer, from, bytes } = what;
        let Some(not_logged) = self.lines.due() else { return };
        info!(
            request = %id,
            %app,
            way,
            peer = peer.map(PeerId::as_str),
            from = from.map(PeerId::as_str),
            bytes,
            %reason,
            not_logged = Some(not_logged).filter(|number| *number > 0),
            "an answer was cut off after its head"
        );
    }
}

/// The step of a request's trace.
pub(crate) fn broke_off(bytes: u64, reason: &dyn fmt::Display) -> String {
    format!("the answer broke off after {bytes} bytes of its body: {reason}")
}
