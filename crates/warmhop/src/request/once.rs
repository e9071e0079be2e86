//! Requests with a key to an app that changes its session by commands ([`EffectsMode::ByCommand`]).
//! The commands of such an app are not undone when its peer dies, so the request is not run again,
//! neither by the mesh nor by its client's repeat. The *begin* of its run is committed *before* it
//! runs, under its key. A peer that finds a begin without an answer commits that the outcome is
//! unknown, and answers so from then on.
//!
//! The begin names the attempt that committed it. As long as no app can have seen the request, that
//! attempt continues from its begin wherever the session has moved, or removes it if the request
//! cannot run.

use std::time::Duration;

use http::HeaderMap;
use warmhop_core::config::EffectsMode;
use warmhop_core::ids::{RequestKey, SessionKey};
use warmhop_core::session::begun::begin_of;
use warmhop_core::session::entry::Enter;
use warmhop_core::session::message::{Exec, ExecDone, Stored};
use warmhop_core::session::{Failure, Outcome, Submit, Ticket};

use crate::observe::recall::Tracing;
use crate::request::call::Call;
use crate::request::node::{Node, Place};
use crate::request::portable::{LineEnd, Portable, Run};
use crate::request::problem::{Audience, Problem, outcome_unknown, too_many_sessions};
use crate::request::served::Served;
use crate::sessions::events::Event;

/// How long a client may wait for its refusal while a begin is removed.
const TAKE_BACK_WITHIN: Duration = Duration::from_secs(2);

/// Whether a request's run has begun before.
enum Begun {
    /// Not by another attempt. This is where it is to run.
    Now(Place),
    /// It has, and may have changed anything.
    Before,
}

impl Portable<'_> {
    /// Whether the request must not run a second time, even for its client's repeat.
    pub(crate) fn runs_once(&self) -> bool {
        self.keyed && self.slot.spec().policy.effects == EffectsMode::ByCommand
    }

    /// The request key under which the begin of its run is stored.
    fn begin_rid(&self) -> RequestKey {
        begin_of(self.rid)
    }

    /// The request key of the order that removes what `attempt` began.
    fn taking_back(&self, attempt: u64) -> RequestKey {
        let mut context = ring::digest::Context::new(&ring::digest::SHA256);
        context.update(b"takes back ");
        context.update(&self.rid.0);
        context.update(&attempt.to_be_bytes());
        let digest = context.finish();
        RequestKey(digest.as_ref()[..16].try_into().expect("a digest has 32 bytes"))
    }

    fn submit_as(&self, rid: RequestKey) -> impl FnOnce(Ticket) -> Submit {
        let (fingerprint, seen) = (self.fingerprint, self.seen);
        move |ticket| Submit { ticket, rid, fingerprint, keyed: true, seen, safe: false }
    }
}

impl Node {
    /// Runs the request unless another attempt of it has begun before.
    pub(crate) async fn run_once(
        &self,
        portable: &Portable<'_>,
        call: &mut Call,
        key: &SessionKey,
        enter: Enter,
        tracing: &mut Tracing,
    ) -> LineEnd {
        let Some(_under_way) = self.runs_once.enter(key, portable.rid) else {
            return LineEnd::Failed(Failure::KeyInUse);
        };
        let place = match Box::pin(self.note_begin(portable, call, key, enter, tracing)).await {
            Ok(Begun::Now(place)) => place,
            Ok(Begun::Before) => {
                let run = Run::OutcomeUnknown;
                return self.stand_in_line(portable, call, key, Enter::AsOwner, run, tracing).await;
            }
            Err(end) => return never_ran(end),
        };
        let run = Run::At(place);
        let end = self.stand_in_line(portable, call, key, Enter::AsOwner, run, tracing).await;
        if call.may_have_run {
            return end;
        }
        let end = never_ran(end);
        if matches!(end, LineEnd::Problem(_) | LineEnd::Failed(_)) {
            let taking_back = self.take_back(portable, call.attempt, key);
            if tokio::time::timeout(TAKE_BACK_WITHIN, taking_back).await.is_err() {
                tracing.step("once", "the record that its run began could not be removed in time");
            }
        }
        end
    }

    /// Commits that the request's run begins, once it is known where it can run.
    async fn note_begin(
        &self,
        portable: &Portable<'_>,
        call: &mut Call,
        key: &SessionKey,
        enter: Enter,
        tracing: &mut Tracing,
    ) -> Result<Begun, LineEnd> {
        let line = self.store.enqueue(key, portable.submit_as(portable.begin_rid()), enter);
        let mut line = line.ok_or_else(|| LineEnd::Problem(too_many_sessions()))?;
        let mut place = None;
        loop {
            match line.next().await {
                Event::Turn => {
                    // Nothing is committed for a request that finds nowhere to run.
                    place = Some(self.place_once(portable, call, tracing).await?);
                    line.begin(self.incarnation);
                }
                Event::Execute { exec, .. } => {
                    let done = self.write_down(key, &exec, Stored::Begun(call.attempt));
                    line.executed(done.map_or(Outcome::Failed, Outcome::from));
                }
                Event::Release { .. } => match place.take() {
                    Some(place) => return Ok(Begun::Now(place)),
                    None => return Ok(Begun::Before),
                },
                Event::Replay { stored, .. } if stored.is_begin_of(call.attempt) => {
                    tracing.step("once", "it continues the attempt that began on another peer");
                    return self.place_once(portable, call, tracing).await.map(Begun::Now);
                }
                Event::Replay { .. } => return Ok(Begun::Before),
                Event::Again => {}
                Event::Fail(failure) => return Err(LineEnd::Failed(failure)),
                Event::Redirect(to) => return Err(LineEnd::Elsewhere(to)),
            }
        }
    }

    async fn place_once(
        &self,
        portable: &Portable<'_>,
        call: &mut Call,
        tracing: &mut Tracing,
    ) -> Result<Place, LineEnd> {
        let placing = portable.placing();
        self.place(&placing, &mut call.waits, tracing).await.map_err(LineEnd::Problem)
    }

    /// Removes the begin that `attempt` committed and no app saw: the key is free again. If the
    /// session has changed owners meanwhile it stays, and the key's outcome counts as unknown.
    async fn take_back(&self, portable: &Portable<'_>, attempt: u64, key: &SessionKey) {
        let rid = portable.taking_back(attempt);
        let line = self.store.enqueue(key, portable.submit_as(rid), Enter::AsOwner);
        let Some(mut line) = line else { return };
        loop {
            match line.next().await {
                Event::Turn => line.begin(self.incarnation),
                Event::Execute { exec, .. } => {
                    let begin = portable.begin_rid();
                    let done = self.store.with(key, true, |machine, ctx, _| {
                        match machine.exec_begin(ctx, &exec) {
                            Ok(base) => {
                                machine.exec_end_taking_back(ctx, &exec, &base, begin, attempt)
                            }
                            Err(refused) => refused,
                        }
                    });
                    line.executed(done.map_or(Outcome::Failed, Outcome::from));
                }
                Event::Again => {}
                Event::Release { .. }
                | Event::Replay { .. }
                | Event::Fail(_)
                | Event::Redirect(_) => {
                    return;
                }
            }
        }
    }

    /// The outcome of an order that runs no app: `stored` is committed for its key.
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

    /// The answer to a client whose request may have been applied: a response, since its cookie has
    /// to name the session that remembers this.
    pub(crate) fn unknown_for_good(&self, problem: Option<Problem>, id: &str) -> Served {
        let problem = problem.unwrap_or_else(|| {
            outcome_unknown(
                "an earlier attempt of this request was interrupted, and it is not run again",
            )
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

/// How an attempt ended that no app saw, whatever is known of the records that were to show it: the
/// same attempt may continue.
fn never_ran(end: LineEnd) -> LineEnd {
    match end {
        LineEnd::Failed(Failure::Deposed { to, .. }) => LineEnd::Elsewhere(to),
        LineEnd::Failed(Failure::NoMajority { .. }) => {
            LineEnd::Failed(Failure::NoMajority { ran: false })
        }
        LineEnd::Failed(Failure::Lost { .. }) => LineEnd::Failed(Failure::Lost { ran: false }),
        end => end,
    }
}
