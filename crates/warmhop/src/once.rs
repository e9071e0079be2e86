//! Requests with a key to an app that changes its session by commands
//! ([`EffectsMode::ByCommand`]). What such an app did before its peer died is not undone, so the
//! request is not run again, neither by the mesh nor by its client's repeat: that its run begins is
//! committed *before* it runs, beside its key, and whoever finds this without an answer commits that
//! the outcome is unknown, and says so from then on.

use http::HeaderMap;
use warmhop_core::config::EffectsMode;
use warmhop_core::ids::{RequestKey, SessionKey};
use warmhop_core::session::entry::Enter;
use warmhop_core::session::message::{Exec, ExecDone, Stored};
use warmhop_core::session::{Outcome, Submit};

use crate::call::Call;
use crate::node::{Node, Place, Placing};
use crate::portable::{LineEnd, Portable};
use crate::problem::{Audience, Problem, outcome_unknown, too_many_sessions};
use crate::recall::Tracing;
use crate::serve::Served;
use crate::sessions::Told;

/// Whether a request's run was begun before.
pub(crate) enum Begun {
    /// Not before this: where it is to run.
    Now(Place),
    /// It was, and may have changed anything.
    Before,
}

impl Portable<'_> {
    /// Whether the request must not run a second time, be it by its client's repeat.
    pub(crate) fn runs_once(&self) -> bool {
        self.keyed && self.slot.spec.policy.effects == EffectsMode::ByCommand
    }

    /// The name under which the begin of its run is remembered.
    fn begin_rid(&self) -> RequestKey {
        let mut context = ring::digest::Context::new(&ring::digest::SHA256);
        context.update(b"begins ");
        context.update(&self.rid.0);
        let digest = context.finish();
        RequestKey(digest.as_ref()[..16].try_into().expect("a digest has 32 bytes"))
    }
}

impl Node {
    /// Commits that the request's run begins, once it is known where it can run.
    pub(crate) async fn note_begin(
        &self,
        portable: &Portable<'_>,
        call: &mut Call,
        key: &SessionKey,
        enter: Enter,
        tracing: &mut Tracing,
    ) -> Result<Begun, LineEnd> {
        let submit = |ticket| Submit {
            ticket,
            rid: portable.begin_rid(),
            fingerprint: portable.fingerprint,
            keyed: true,
            seen: portable.seen,
            safe: false,
        };
        let line = self.store.enqueue(key, submit, enter);
        let mut line = line.ok_or_else(|| LineEnd::Problem(too_many_sessions()))?;
        let mut place = None;
        loop {
            match line.next().await {
                Told::Turn => {
                    let placing = Placing {
                        slot: portable.slot,
                        arrived: portable.arrived,
                        pin: None,
                        tried: &[],
                        failed: None,
                        shun_here: false,
                    };
                    // Nothing is written down about a request that finds nowhere to run.
                    let found = self.place(&placing, &mut call.waited, tracing).await;
                    place = Some(found.map_err(LineEnd::Problem)?);
                    line.begin(self.incarnation);
                }
                Told::Execute { exec, .. } => {
                    let done = self.write_down(key, &exec, Stored::Applied);
                    line.executed(done.map_or(Outcome::Failed, Outcome::from));
                }
                Told::Release { .. } => match place.take() {
                    Some(place) => return Ok(Begun::Now(place)),
                    None => return Ok(Begun::Before),
                },
                Told::Replay { .. } => return Ok(Begun::Before),
                Told::Again => {}
                Told::Fail(failure) => return Err(LineEnd::Failed(failure)),
                Told::Redirect(to) => return Err(LineEnd::Elsewhere(to)),
            }
        }
    }

    /// What comes of an order that runs no app: `stored` is written down for its key.
    pub(crate) fn write_down(
        &self,
        key: &SessionKey,
        exec: &Exec,
        stored: Stored,
    ) -> Option<ExecDone> {
        self.store.with(key, true, |machine, ctx, _| match machine.exec_begin(ctx, exec) {
            Ok(base) => machine.exec_end(ctx, exec, &base, None, stored),
            Err(refused) => refused,
        })
    }

    /// What a client is told whose request may have been applied: a response, since its cookie has
    /// to name the session that remembers this.
    pub(crate) fn unknown_for_good(&self, problem: Option<Problem>, id: &str) -> Served {
        let problem = problem.unwrap_or_else(|| {
            outcome_unknown("an earlier attempt of this request broke off, and it is not run again")
        });
        let response = problem.response(&Audience {
            accept: &HeaderMap::new(),
            is_get: false,
            peer: self.me.as_str(),
            id,
            reveal: self.reveal,
            page: &self.error_page,
        });
        Served::here(self, response)
    }
}
