//! A request of a portable session on its way through this peer: forwarded to the session's owner,
//! executed with the session's checks, and answered once its change is committed. The core's
//! `session::entry` decides what to do in each case.

use std::cell::OnceCell;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use warmhop_core::affinity::{Entry, Kind};
use warmhop_core::config::WithoutMajority;
use warmhop_core::ids::{Ballot, Incarnation, RequestKey, SessionId, SessionKey, WallTime};
use warmhop_core::route::{Arrived, Attempted, may_retry};
use warmhop_core::session::entry::{
    After, Alone, Asked, Because, ByKey, End, Enter, Errand, Here, Look, Moves, NEWBORN_FOR, Named,
    Step, TakeOver, alone, fence_at, first_members, hears_most, is_elsewhere, members_by_key,
    members_to_begin,
};
use warmhop_core::session::message::Config;
use warmhop_core::session::{Failure, Otherwise, Submit, Ticket};
use warmhop_core::version::AppVersion;
use warmhop_core::view::View;

use crate::app::slot::Slot;
use crate::hop::{Forward, Hint, Relay};
use crate::http::fields;
use crate::http::refusals::ByReason;
use crate::observe::metrics::MEMORY_FULL;
use crate::observe::recall::{Tracing, Why};
use crate::request::answer::Answer;
use crate::request::call::{Call, CallBody};
use crate::request::node::{Node, Place, Placing};
use crate::request::problem::{
    Problem, after_an_attempt, body_gone, gave_up, memory_full, of_session, outcome_unknown,
};
use crate::request::served::Served;
use crate::sessions::store::AsOwner;

/// A portable request on its way through this peer.
#[derive(Clone, Copy)]
pub(crate) struct Portable<'a> {
    pub(crate) slot: &'a Arc<Slot>,
    pub(crate) rid: RequestKey,
    pub(crate) fingerprint: u64,
    pub(crate) keyed: bool,
    /// The number that the client's token named when the request arrived.
    pub(crate) seen: Option<u64>,
    pub(crate) arrived: Arrived,
    pub(crate) hops_left: u8,
    /// Its session was created for it: no token of it has left.
    pub(crate) drawn: bool,
    /// The newest version of the app that has served the session.
    pub(crate) version: Option<&'a AppVersion>,
}

impl<'a> Portable<'a> {
    /// For a request that another peer forwarded.
    pub(crate) fn forwarded(slot: &'a Arc<Slot>, forward: &'a Forward) -> Self {
        Self {
            slot,
            rid: forward.rid,
            fingerprint: forward.fingerprint,
            keyed: forward.keyed,
            seen: forward.seen,
            arrived: Arrived::AtFrontDoor,
            hops_left: forward.hops_left,
            drawn: false,
            version: forward.version.as_ref(),
        }
    }

    /// The request in the form in which it enters its session's line.
    pub(crate) fn submit(&self, call: &Call) -> impl FnOnce(Ticket) -> Submit {
        let (rid, fingerprint, keyed, seen) = (self.rid, self.fingerprint, self.keyed, self.seen);
        let safe = fields::is_safe(&call.method) && !keyed;
        move |ticket| Submit { ticket, rid, fingerprint, keyed, seen, safe }
    }

    /// The request in the form in which it is forwarded to the session's owner.
    fn forward(&self, sid: SessionId, owner: Incarnation, (n, attempt): (u64, u64)) -> Forward {
        Forward {
            sid,
            cfg: None,
            owner,
            n,
            rid: self.rid,
            fingerprint: self.fingerprint,
            keyed: self.keyed,
            seen: self.seen,
            attempt,
            hops_left: self.hops_left,
            version: self.version.cloned(),
            hand_off: None,
            relay: None,
        }
    }

    /// The properties that decide where it runs, as long as no copy has had it.
    pub(crate) fn placing(&self) -> Placing<'a> {
        Placing { version: self.version, ..Placing::first(self.slot, self.arrived) }
    }

    /// The properties that stay the same from one attempt to the next.
    pub(crate) fn asked(&self, call: &Call) -> Asked {
        Asked {
            keyed: self.keyed,
            seen: self.seen,
            may_repeat: may_retry(Attempted {
                is_safe: fields::is_safe(&call.method),
                has_key: self.keyed,
                effects: self.slot.spec().policy.effects,
                is_portable: true,
                may_have_reached_app: true,
            }),
            hops_left: self.hops_left,
        }
    }

    /// The client's problem for `problem`. If `unsure`, an earlier attempt may have been applied;
    /// that does not matter if the request is safe.
    pub(crate) fn problem_for_client(
        &self,
        problem: Problem,
        call: &Call,
        unsure: bool,
    ) -> Problem {
        if unsure && !fields::is_safe(&call.method) { after_an_attempt(problem) } else { problem }
    }
}

/// Which session a request is about.
#[derive(Clone, Copy)]
pub(crate) enum Subject<'a> {
    /// Its client's token, if it has one that names a session.
    Token(Option<&'a Entry>),
    /// A key.
    Key(ByKey),
}

/// How a request in line is to run.
pub(crate) enum Run {
    /// Where the core places it when its turn comes.
    WherePlaced,
    /// At a place that was chosen already.
    At(Place),
    /// Not at all: it is committed that its outcome is unknown.
    OutcomeUnknown,
    /// It is an operation that is in line already, and may have run.
    Begun(Box<AsOwner<Option<Answer>>>),
}

/// How waiting in line for the session ended.
pub(crate) enum LineEnd {
    Served(Box<Served>),
    /// Another peer owns the session, by the highest known claim.
    Elsewhere(Option<Ballot>),
    /// The request has applied nothing under this session, and will not.
    Failed(Failure),
    Problem(Problem),
}

impl LineEnd {
    /// Whether another peer should be asked, or should look for the session itself.
    pub(crate) fn is_elsewhere(&self) -> bool {
        match self {
            LineEnd::Elsewhere(_) => true,
            LineEnd::Failed(failure) => is_elsewhere(failure),
            LineEnd::Served(_) | LineEnd::Problem(_) => false,
        }
    }
}

impl Node {
    /// Serves a request of a portable session: at its owner, which this peer is, becomes, or
    /// forwards to, as the core's [`Errand`] decides.
    pub(crate) async fn serve_portable(
        &self,
        portable: &Portable<'_>,
        call: &mut Call,
        subject: Subject<'_>,
        tracing: &mut Tracing,
    ) -> Result<Served, Problem> {
        let asked = portable.asked(call);
        let named = |entry: &Entry| match &entry.kind {
            Kind::Portable { cfg, owner, n } => {
                Some(Named { sid: entry.sid, cfg: cfg.clone(), owner: *owner, n: *n })
            }
            Kind::Pinned { .. } => None,
        };
        let mut errand = match subject {
            Subject::Token(entry) => {
                let errand = Errand::new(asked, entry.and_then(named));
                let serves = self.store.policy().without_majority == WithoutMajority::Serve;
                if serves { errand } else { errand.that_may_be_relayed() }
            }
            Subject::Key(key) => Errand::by_key(asked, key),
        };
        let served = self.run_errand(portable, call, &mut errand, None, tracing).await;
        let unsure = errand.may_have_run() || call.may_have_run;
        served.map_err(|problem| portable.problem_for_client(problem, call, unsure))
    }

    /// Serves an operation on a register that this peer owned, from where it stands in line: its first
    /// attempt began as `here` says.
    pub(crate) async fn serve_on(
        &self,
        portable: &Portable<'_>,
        call: &mut Call,
        by_key: ByKey,
        begun: Box<AsOwner<Option<Answer>>>,
        here: &Here<'_>,
        tracing: &mut Tracing,
    ) -> Result<Served, Problem> {
        let mut errand = Errand::by_key(portable.asked(call), by_key);
        let owns = Look { owns: true, ..Look::default() };
        let step = errand.next(owns, here, || false);
        debug_assert_eq!(step, Step::AtOwner { take_over: None });
        let key = begun.line.key.clone();
        tracing.session(&key);
        let portable = &Portable { seen: errand.seen(call.may_have_run), ..*portable };
        let run = Run::Begun(begun);
        let end =
            Box::pin(self.stand_in_line(portable, call, &key, Enter::AsOwner, run, tracing)).await;
        let served = self.run_errand(portable, call, &mut errand, Some(end), tracing).await;
        let unsure = errand.may_have_run() || call.may_have_run;
        served.map_err(|problem| portable.problem_for_client(problem, call, unsure))
    }

    /// Tries until it is served, or must not or cannot be tried again. `first` is the end of its first
    /// attempt, if that was made already.
    pub(crate) async fn run_errand(
        &self,
        portable: &Portable<'_>,
        call: &mut Call,
        errand: &mut Errand,
        mut first: Option<LineEnd>,
        tracing: &mut Tracing,
    ) -> Result<Served, Problem> {
        loop {
            let end = match first.take() {
                Some(end) => end,
                None => self.attempt(portable, call, errand, tracing).await?,
            };
            let end = match end {
                LineEnd::Served(mut served) => {
                    served.session_lost = errand.lost();
                    served.after_end = errand.ended_before();
                    served.forked = errand.forked();
                    return Ok(*served);
                }
                LineEnd::Problem(problem) => return Err(problem),
                LineEnd::Elsewhere(other) => End::Elsewhere(other),
                LineEnd::Failed(failure) => End::Failed(failure),
            };
            let mut after = errand.ended(end, call.is_sendable(), &self.here(&self.view()));
            if let (After::TryAlone(failure), Some(sid)) = (after, errand.sid()) {
                let key = SessionKey { app: portable.slot.name().clone(), sid };
                let ((into, cfg), view) = (self.tried_alone(&key, errand.is_by_key()), self.view());
                let (sendable, here) = (call.is_sendable(), self.here(&view));
                after = errand.tried_alone(failure, into, cfg.as_ref(), sendable, &here);
            }
            match after {
                After::Again { because: Because::NoWitness, back_off } => {
                    tracing.step(
                        "wait",
                        "this peer has just started and knows no other peer to ask yet",
                    );
                    let jitter = rand::random_range(Duration::ZERO..back_off);
                    tokio::time::sleep(self.newborn_for() + jitter).await;
                }
                After::Again { because, back_off } => {
                    trace(because, errand.lost(), tracing);
                    if !back_off.is_zero() {
                        tokio::time::sleep(rand::random_range(Duration::ZERO..back_off)).await;
                    }
                }
                After::Refuse(failure) | After::TryAlone(failure) => {
                    return Err(self.session_problem(portable.slot, &failure));
                }
                After::OutcomeUnknown(Because::NotBegun) => {
                    return Err(outcome_unknown("its session could not be begun"));
                }
                After::OutcomeUnknown(because) => {
                    trace(because, errand.lost(), tracing);
                    return Err(match errand.may_have_run() || call.may_have_run {
                        true => outcome_unknown("the session's owner changed"),
                        false => body_gone("the session's owner changed"),
                    });
                }
            }
        }
    }

    /// Carries out what the core decides for the next attempt.
    pub(crate) async fn attempt(
        &self,
        portable: &Portable<'_>,
        call: &mut Call,
        errand: &mut Errand,
        tracing: &mut Tracing,
    ) -> Result<LineEnd, Problem> {
        let portable = &Portable { seen: errand.seen(call.may_have_run), ..*portable };
        let (view, later) = (self.view(), OnceCell::new());
        let mut here = self.here(&view);
        if errand.must_meet(&here) {
            tracing.step("wait", "this peer has just started, and has met no other yet");
            self.meet_someone(errand).await;
            here = self.here(later.get_or_init(|| self.view()));
        }
        if errand.is_too_old(call.may_have_run, self.store.policy().forget_grace, &here) {
            return Err(outcome_unknown("its register may have ended and been forgotten since"));
        }
        let app = portable.slot.name();
        let key = errand.sid().map(|sid| SessionKey { app: app.clone(), sid });
        let look = key.as_ref().and_then(|key| self.store.look(key));
        if let Some(key) = &key {
            tracing.session(key);
        }
        let n = errand.session().map_or(0, |named| named.n);
        let stays = || key.as_ref().is_some_and(|key| self.store.should_move(key, n));
        // If an app may have seen the request, it becomes another attempt: that must not continue
        // what this one began.
        let unsure = errand.may_have_run() || call.may_have_run;
        let attempt = if unsure { rand::random() } else { call.attempt };
        let step = errand.next(look.unwrap_or_default(), &here, stays);
        let Some(key) = key else {
            return match step {
                Step::GiveUp => Err(gave_up()),
                _ => self.begin_session(portable, call, tracing).await,
            };
        };
        Ok(match step {
            Step::GiveUp => return Err(gave_up()),
            Step::Begin => self.begin_session(portable, call, tracing).await?,
            Step::Forward { to, owner, hops_left, moves } => {
                match moves {
                    Some(Moves::OwnerDrains) => tracing
                        .step("owner", "the session's owner is draining: the session moves here"),
                    Some(Moves::ClientStays) => tracing
                        .step("owner", "its client keeps arriving here: the session moves here"),
                    None if here.view.life(&to) != Some(owner) => tracing.step(
                        "forward",
                        format!("this peer does not hear the session's owner, and {to} may"),
                    ),
                    None => {}
                }
                let forward = Forward {
                    cfg: errand.token().cloned(),
                    hops_left,
                    hand_off: moves.map(|_| self.incarnation),
                    ..portable.forward(key.sid, owner, (n, attempt))
                };
                tracing.step("forward", Why::OwnedBy(to.clone()));
                self.forward(portable, call, &key, forward, &to, tracing).await
            }
            Step::Relay { to, hops_left, begins } => {
                let owner = errand.session().map_or(self.incarnation, |named| named.owner);
                let forward = Forward {
                    cfg: errand.token().cloned(),
                    hops_left,
                    relay: Some(Relay { by: self.incarnation, begins }),
                    ..portable.forward(key.sid, owner, (n, attempt))
                };
                let why = "this peer hears too few of those that hold it, and others may hear more";
                tracing.step("relay", format!("{to} is asked: {why}"));
                self.forward(portable, call, &key, forward, &to, tracing).await
            }
            Step::AtOwner { take_over } => {
                if take_over == Some(TakeOver::OwnerSilent) {
                    tracing.step("owner", "the session's owner is gone or silent");
                }
                if take_over.is_some() {
                    tracing.step("take over", "this peer takes the session over");
                }
                let enter = match take_over {
                    None => Enter::AsOwner,
                    Some(_) => self.seeking(&key, errand),
                };
                self.at_owner(portable, call, &key, enter, None, tracing).await
            }
        })
    }

    pub(crate) fn here<'v>(&self, view: &'v View) -> Here<'v> {
        Here {
            me: self.incarnation,
            draining: self.is_draining(),
            newborn: !self.newborn_for().is_zero(),
            hears_most: hears_most(view, |peer| self.store.is_dead(&peer)),
            full: self.store.has_hardly_any_room(),
            view,
            wall: self.clock.wall(),
        }
    }

    /// Waits until this peer has met another, or is no longer newborn.
    async fn meet_someone(&self, errand: &Errand) {
        let mut changed = self.changed.subscribe();
        while errand.must_meet(&self.here(&self.view())) {
            // Until the view changes, or the time is over.
            let _ = tokio::time::timeout(self.newborn_for(), changed.changed()).await;
        }
    }

    /// How long it is still newborn: see [`Here::newborn`]. A peer without seeds never is, nor is one
    /// that has heard of everyone.
    pub(crate) fn newborn_for(&self) -> Duration {
        let woke = if self.seeds > 0 { self.runs() } else { Duration::ZERO };
        // A peer that never met another has nobody to hear.
        let woke = if self.view().live_peers().next().is_some() { woke } else { Duration::ZERO };
        let is_new = self.seeds > 0 && !self.store.has_met_all();
        let span = if is_new { NEWBORN_FOR } else { Duration::ZERO };
        span.saturating_sub(self.started.elapsed()).max(woke)
    }

    /// Notes that this process runs, and returns for how much longer it counts as newborn because it
    /// stood still.
    pub(crate) fn runs(&self) -> Duration {
        let mut stillness = self.stillness.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.clock.now();
        // The machine's own clock: the mesh's follows it slowly where it jumps.
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        stillness.runs(now, WallTime(u64::try_from(wall.as_millis()).unwrap_or(u64::MAX)));
        stillness.newborn_for(now)
    }

    /// Without a majority, continues from this peer's own copy, if the core allows it: under a new
    /// session, or as the same one where a key names it. Returns the session that it continues as, from now
    /// or since before.
    pub(crate) fn fork(&self, key: &SessionKey, by_key: bool) -> Option<SessionId> {
        let policy = self.store.policy();
        let may = self.store.with(key, false, |machine, ctx, _| {
            let is_left = ctx.process.census.is_left_alone(ctx.now, policy.majority_timeout);
            alone(machine, ctx.me, &policy, is_left, by_key, ctx.wall)
        })?;
        let record = match may {
            Alone::No => return None,
            Alone::Already(into) => return Some(into),
            Alone::From(record) => record,
            Alone::Anew(record) => {
                let is_begun = self
                    .store
                    .with(key, false, |machine, ctx, out| machine.begin_anew(ctx, record.p, out))?;
                if is_begun {
                    self.metrics.sessions_forked.inc();
                    tracing::warn!(session = %key, "the session goes on from this peer's copy alone: no majority of the peers that hold it is left");
                }
                return is_begun.then_some(key.sid);
            }
        };
        let new = SessionKey { app: key.app.clone(), sid: SessionId(rand::random()) };
        let cfg = first_members(new.sid, None, policy.copies, &self.here(&self.view()));
        self.store.with(&new, true, |machine, ctx, out| {
            machine.mint_from(ctx, cfg, &record, out);
        })?;
        let into = self.store.with(key, false, |machine, ctx, out| {
            fence_at(machine, ctx, record.p, new.sid, out)
        })??;
        if into == new.sid {
            self.metrics.sessions_forked.inc();
            tracing::warn!(session = %key, as_session = %new, "the session was forked: no majority of the peers that hold it is left, so it goes on from this peer's copy");
        }
        Some(into)
    }

    /// As [`Node::fork`], with the members that are known by now.
    pub(crate) fn tried_alone(
        &self,
        key: &SessionKey,
        by_key: bool,
    ) -> (Option<SessionId>, Option<Config>) {
        let into = self.fork(key, by_key);
        (into, self.store.read(key, |machine| machine.config().cloned()).flatten())
    }

    /// Creates a session for a client that has none, and serves its first request.
    async fn begin_session(
        &self,
        portable: &Portable<'_>,
        call: &mut Call,
        tracing: &mut Tracing,
    ) -> Result<LineEnd, Problem> {
        let place = self.place(&portable.placing(), &mut call.waits, tracing).await?;
        let view = self.view();
        let executor = match &place {
            Place::Here => None,
            Place::There(peer) => view.peer(peer).map(|belief| belief.news.incarnation),
        };
        let sid = SessionId(rand::random());
        let cfg = members_to_begin(sid, executor, &self.store.policy(), &self.here(&view));
        let key = SessionKey { app: portable.slot.name().clone(), sid };
        tracing.session(&key);
        let enter = Enter::Beginning(cfg);
        Ok(self.at_owner(portable, call, &key, enter, Some(place), tracing).await)
    }

    /// Takes over the session that a token names, or searches for the one that a key names.
    fn seeking(&self, key: &SessionKey, errand: &Errand) -> Enter {
        let view = self.view();
        let copies = self.store.policy().copies;
        let members = |sid| members_by_key(sid, copies, &self.me, &self.here(&view));
        match errand.otherwise(members) {
            Some(otherwise) => Enter::Seeking { peers: self.whom_to_ask(key), otherwise },
            None => {
                Enter::TakingOver { token: errand.token().cloned(), peers: self.whom_to_ask(key) }
            }
        }
    }

    pub(crate) fn taking_over(&self, key: &SessionKey, token: Config) -> Enter {
        Enter::TakingOver { token: Some(token), peers: self.whom_to_ask(key) }
    }

    /// Waits in line at this peer for the session: as its owner, or once it has taken over. `place`
    /// is where the request runs, if that is decided.
    pub(crate) async fn at_owner(
        &self,
        portable: &Portable<'_>,
        call: &mut Call,
        key: &SessionKey,
        enter: Enter,
        place: Option<Place>,
        tracing: &mut Tracing,
    ) -> LineEnd {
        // A request that empties a session frees memory.
        let may_grow = !fields::is_safe(&call.method) && call.method != http::Method::DELETE;
        let begins = match &enter {
            Enter::Beginning(config)
            | Enter::Seeking { otherwise: Otherwise::Begin(config), .. } => Some(config),
            Enter::Seeking { .. } | Enter::AsOwner | Enter::TakingOver { .. } => None,
        };
        let grows_to = match &call.body {
            CallBody::Whole(operation) if portable.slot.keeps_registers => operation.len(),
            _ => self.store.policy().state_bytes_max,
        };
        let is_refused = || {
            let begins_here = portable.slot.keeps_registers && begins.is_some();
            begins_here && self.store.has_no_room_to_begin(key, grows_to)
                || self.store.lacks_room(key, begins, grows_to)
        };
        if may_grow && is_refused() {
            return LineEnd::Problem(self.refused_for_want_of_room());
        }
        let drawn = matches!(enter, Enter::Beginning(_));
        let portable = &Portable { drawn, ..*portable };
        // The outcome of an earlier attempt is unknown, and remains so.
        let unknown = portable.runs_once() && call.may_have_run;
        if portable.runs_once() && !drawn && !unknown {
            return Box::pin(self.run_once(portable, call, key, enter, tracing)).await;
        }
        // Boxed, as the other one: each of the many futures around it would move all of it.
        let run = match place {
            _ if unknown => Run::OutcomeUnknown,
            Some(place) => Run::At(place),
            None => Run::WherePlaced,
        };
        Box::pin(self.stand_in_line(portable, call, key, enter, run, tracing)).await
    }

    /// Counts a change for which there is no room, and returns the problem for its client.
    pub(crate) fn refused_for_want_of_room(&self) -> Problem {
        let reason = ByReason { reason: MEMORY_FULL };
        self.metrics.session_refusals.get_or_create(&reason).inc();
        memory_full()
    }

    pub(crate) fn portable_entry(&self, key: &SessionKey, hint: &Hint) -> Entry {
        Entry {
            app: key.app.clone(),
            sid: hint.sid,
            kind: Kind::Portable { cfg: hint.cfg.clone(), owner: hint.owner, n: hint.n },
            expiry: self.clock.wall().after(self.store.policy().ttl),
            version: None,
        }
    }

    /// Counts a session that could not be used, and returns the problem for its client.
    pub(crate) fn session_problem(&self, slot: &Slot, failure: &Failure) -> Problem {
        if *failure == Failure::Absent {
            // That there is none is a valid answer.
            return of_session(failure);
        }
        let reason = ByReason { reason: failure.problem().name() };
        self.metrics.session_refusals.get_or_create(&reason).inc();
        if *failure == Failure::NoRoom && !slot.keeps_registers {
            // What else the app did stays.
            return outcome_unknown("the request ran, but there was no room for its session");
        }
        self.name_unheard(of_session(failure))
    }
}

fn trace(because: Because, lost: bool, tracing: &mut Tracing) {
    match because {
        Because::Forked(into) => tracing.step("fork", format!("it goes on as {into}")),
        Because::Lost if lost => {
            tracing.step("lost", "too many of the session's holders are gone");
        }
        Because::Ended => tracing.step("ended", "the session's id was ended: a new one begins"),
        Because::Lost
        | Because::NotBegun
        | Because::OwnedElsewhere
        | Because::Deposed
        | Because::NoWitness => {}
    }
}
