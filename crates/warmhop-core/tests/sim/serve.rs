//! A request on its way through a peer: re-enacts the mesh crate's ingress, serving and hops line
//! by line, over the real `route`, `affinity`, `rank` and `session`.

use std::rc::Rc;

use warmhop_core::affinity::{self, Arrival, Entry, Kind, Token};
use warmhop_core::config::{EffectsMode, StartMode, WithoutMajority};
use warmhop_core::ids::{Ballot, Incarnation, PeerId, RequestKey, SessionId};
use warmhop_core::problem::ProblemKind;
use warmhop_core::route::{Attempted, may_retry};
use warmhop_core::session::entry::{
    self, After, Alone, Because, ByKey, End, Enter, Errand, FORWARDS_MAX, Forwarded, Here, Look,
    NEWBORN_FOR, Named, Relayed, Rerun, Reruns, Step, alone, answer_forward, fence_at,
    first_members, is_cut_off, is_for_entry, is_void, members_by_key, members_to_begin,
    tries_alone,
};
use warmhop_core::session::message::{Config, Exec, Stored};
use warmhop_core::session::{Failure, Outcome, Session, Submit, TokenHint};
use warmhop_core::view::{AppState, View};

use crate::calls::{
    Asked, Call, Forward, Hint, HopError, HopKind, HopRefusal, HopReply, LineEnd, LocalError,
    Place, Portable, Reply, ReplySession, Served,
};
use crate::cookie_key::Key;
use crate::peer::{Peer, SHOP, app_name};
use crate::registers::refusal;
use crate::store::{InLine, Told};

const ROUNDS_MAX: u32 = 8;

// The ingress.

impl Peer {
    /// Serves a client's request at its front door.
    pub(crate) async fn front_door(self: &Rc<Self>, asked: Asked, cookie: Option<String>) -> Reply {
        let token =
            cookie.as_deref().and_then(|value| affinity::read(value, &Key, self.wall()).ok());
        let app = app_name(asked.slot);
        let former = token.as_ref().and_then(|(token, _)| token.entry(&app).cloned());
        let mut call = Call { asked, has_body: true, may_have_run: false };
        let served = if let Some(sid) = call.asked.key {
            self.serve_register(&mut call, sid).await
        } else if call.asked.slot == SHOP {
            let portable = Portable {
                rid: self.rid_of(&call.asked),
                seen: former.as_ref().and_then(|entry| match entry.kind {
                    Kind::Portable { n, .. } => Some(n),
                    Kind::Pinned { .. } => None,
                }),
                hops_left: FORWARDS_MAX,
            };
            self.serve_portable(portable, &mut call, former.as_ref()).await
        } else {
            self.serve_plain(&mut call).await
        };
        match served {
            Ok(served) => self.finish(served, token, former),
            Err(problem) => refusal(problem),
        }
    }

    pub(crate) fn rid_of(&self, asked: &Asked) -> RequestKey {
        let mut rid = if asked.keyed { [0xEE; 16] } else { self.world.bytes() };
        rid[..2].copy_from_slice(&asked.id.to_be_bytes());
        RequestKey(rid)
    }

    pub(crate) fn finish(
        &self,
        served: Served,
        token: Option<(Token, Option<PeerId>)>,
        former: Option<Entry>,
    ) -> Reply {
        let mut cookie = None;
        if let Some(entry) = served.entry {
            let current = token.as_ref().and_then(|(_, route)| route.clone());
            let route = self.route_of(&entry, current.as_ref(), &served.served_by);
            let stays = former.is_some_and(|former| self.is_settled(&former, &entry))
                && current.as_ref() == Some(&route);
            if !stays {
                let mut token = token.map(|(token, _)| token).unwrap_or_default();
                token.put(entry);
                cookie = Some(affinity::mint(&token, &route, &Key));
            }
        }
        Reply {
            answer: Ok(served.response),
            cookie,
            served_by: Some(served.served_by),
            lost: served.lost,
            forked: served.forked,
            replayed: served.replayed,
        }
    }

    pub(crate) fn is_settled(&self, former: &Entry, entry: &Entry) -> bool {
        let wall = self.wall().0;
        former.sid == entry.sid
            && former.kind == entry.kind
            && former.expiry.0.saturating_sub(wall) > entry.expiry.0.saturating_sub(wall) / 2
    }

    pub(crate) fn route_of(
        &self,
        entry: &Entry,
        current: Option<&PeerId>,
        served_by: &PeerId,
    ) -> PeerId {
        let slot = self.slots[SHOP].borrow();
        let starts = slot.policy.start != StartMode::Never && slot.state() != AppState::Failed;
        let arrival = Arrival {
            me: &self.me,
            incarnation: self.inc,
            serves: starts && !self.draining.get(),
            ready: slot.state() == AppState::Ready,
            view: &self.view.borrow(),
            current,
            served_by: Some(served_by),
        };
        affinity::come_back_to(entry, &arrival)
    }
}

// Serving.

impl Peer {
    pub(crate) async fn serve_plain(
        self: &Rc<Self>,
        call: &mut Call,
    ) -> Result<Served, ProblemKind> {
        let at = call.asked.slot;
        let mut tried: Vec<PeerId> = Vec::new();
        for _ in 0..ROUNDS_MAX {
            match self.place(at, &tried).await? {
                Place::Here => match self.run_here(call, None).await {
                    Ok((response, _)) => return Ok(Served::here(self, response)),
                    Err(LocalError::NotReady) => {}
                    Err(_) => return Err(ProblemKind::AppFailed),
                },
                Place::There(to) => {
                    match self.ask(&to, call, HopKind::Plain).await {
                        Ok(reply) => {
                            let mut served = Served::here(self, reply.response);
                            served.served_by = reply.served_by;
                            return Ok(served);
                        }
                        Err(error) => after_failed_hop(call, &error)?,
                    }
                    tried.push(to);
                }
            }
        }
        Err(ProblemKind::NoProgress)
    }

    pub(crate) async fn serve_portable(
        self: &Rc<Self>,
        portable: Portable,
        call: &mut Call,
        entry: Option<&Entry>,
    ) -> Result<Served, ProblemKind> {
        let named = entry.and_then(|entry| match &entry.kind {
            Kind::Portable { cfg, owner, n } => {
                Some(Named { sid: entry.sid, cfg: cfg.clone(), owner: *owner, n: *n })
            }
            Kind::Pinned { .. } => None,
        });
        let mut errand = Errand::new(self.asked(portable, call), named);
        if self.world.knobs.policy.without_majority == WithoutMajority::Refuse {
            errand = errand.that_may_be_relayed();
        }
        let served = self.run_errand(portable, call, &mut errand).await;
        let unsure = (errand.may_have_run() || call.may_have_run) && !call.asked.is_safe();
        served.map_err(|problem| if unsure { problem.after_an_attempt() } else { problem })
    }

    /// What does not change about a request from one attempt to the next.
    pub(crate) fn asked(&self, portable: Portable, call: &Call) -> entry::Asked {
        entry::Asked {
            keyed: call.asked.keyed,
            seen: portable.seen,
            may_repeat: may_retry(Attempted {
                is_safe: call.asked.is_safe(),
                has_key: call.asked.keyed,
                effects: EffectsMode::Anything,
                is_portable: true,
                may_have_reached_app: true,
            }),
            hops_left: portable.hops_left,
        }
    }

    /// Tries until it is served, or must not or cannot be tried again.
    pub(crate) async fn run_errand(
        self: &Rc<Self>,
        portable: Portable,
        call: &mut Call,
        errand: &mut Errand,
    ) -> Result<Served, ProblemKind> {
        loop {
            let about = errand.sid();
            let end = self.attempt(portable, call, errand).await?;
            self.world.note(about, || {
                let end = match &end {
                    LineEnd::Served(_) => {
                        return format!("{} served request {}", self.me, call.asked.id);
                    }
                    LineEnd::Elsewhere(other) => format!("owned elsewhere: {other:?}"),
                    LineEnd::Failed(failure) => format!("{failure:?}"),
                    LineEnd::Problem(problem) => format!("{problem:?}"),
                };
                format!("{} did not serve request {}: {end}", self.me, call.asked.id)
            });
            let end = match end {
                LineEnd::Served(mut served) => {
                    served.lost = errand.lost();
                    served.forked = errand.forked();
                    return Ok(*served);
                }
                LineEnd::Problem(problem) => return Err(problem),
                LineEnd::Elsewhere(other) => End::Elsewhere(other),
                LineEnd::Failed(failure) => End::Failed(failure),
            };
            let mut after = errand.ended(end, call.has_body, &self.here(&self.view.borrow()));
            if let (After::TryAlone(failure), Some(sid)) = (after, errand.sid()) {
                let (into, cfg) = self.tried_alone(sid, errand.is_by_key());
                let view = self.view.borrow();
                let here = self.here(&view);
                after = errand.tried_alone(failure, into, cfg.as_ref(), call.has_body, &here);
            }
            match after {
                After::Again { because: Because::NoWitness, back_off } => {
                    let bound = back_off.as_millis() as u64;
                    self.sleep(self.newborn_for() + self.world.below(bound)).await;
                }
                After::Again { back_off, .. } => {
                    if !back_off.is_zero() {
                        self.sleep(self.world.below(back_off.as_millis() as u64)).await;
                    }
                }
                After::Refuse(failure) | After::TryAlone(failure) => {
                    return Err(failure.problem());
                }
                After::OutcomeUnknown(_) => return Err(ProblemKind::OutcomeUnknown),
            }
        }
    }

    pub(crate) async fn attempt(
        self: &Rc<Self>,
        portable: Portable,
        call: &mut Call,
        errand: &mut Errand,
    ) -> Result<LineEnd, ProblemKind> {
        let portable = Portable { seen: errand.seen(call.may_have_run), ..portable };
        // For however long that takes: see `registers.rs`.
        loop {
            let must_meet = {
                let view = self.view.borrow();
                let few = 2 * (view.peers().count() + 1) <= self.world.knobs.peers;
                errand.must_meet(&self.here(&view)) || few && call.asked.key.is_some()
            };
            if !must_meet {
                break;
            }
            self.world.count("waited to meet somebody");
            self.sleep(20).await;
        }
        self.may_repeat(call, errand)?;
        let sid = errand.sid();
        let n = errand.session().map_or(0, |named| named.n);
        let census = self.census();
        let look = sid.and_then(|sid| self.look(sid, |it| Look::among(it, &census)));
        let stays = || sid.is_some_and(|sid| self.should_move(sid, n));
        let step = errand.next(look.unwrap_or_default(), &self.here(&self.view.borrow()), stays);
        let cfg = errand.token().cloned();
        let Some(sid) = sid else {
            return match step {
                Step::GiveUp => Err(ProblemKind::NoProgress),
                _ => self.begin_session(portable, call).await,
            };
        };
        self.world
            .note(Some(sid), || format!("{}: request {} -> {step:?}", self.me, call.asked.id));
        Ok(match step {
            Step::GiveUp => return Err(ProblemKind::NoProgress),
            Step::Begin => self.begin_session(portable, call).await?,
            Step::Forward { to, owner, hops_left, moves } => {
                let forward = Forward {
                    sid,
                    cfg,
                    owner,
                    n,
                    rid: portable.rid,
                    keyed: call.asked.keyed,
                    seen: portable.seen,
                    hops_left,
                    hand_off: moves.map(|_| self.inc),
                    relay: None,
                };
                self.forward(call, sid, forward, &to).await
            }
            Step::Relay { to, hops_left, begins } => {
                let named = errand.session();
                self.world.count(if named.is_some() { "relayed by token" } else { "relayed" });
                let forward = Forward {
                    sid,
                    cfg,
                    owner: named.map_or(self.inc, |named| named.owner),
                    n,
                    rid: portable.rid,
                    keyed: call.asked.keyed,
                    seen: portable.seen,
                    hops_left,
                    hand_off: None,
                    relay: Some((self.inc, begins)),
                };
                self.forward(call, sid, forward, &to).await
            }
            Step::AtOwner { take_over } => {
                let enter = match take_over {
                    None => Enter::AsOwner,
                    Some(_) => self.seeking(sid, errand),
                };
                self.at_owner(portable, call, sid, enter, None).await
            }
        })
    }

    /// For how many milliseconds more it is newborn.
    pub(crate) fn newborn_for(&self) -> u64 {
        self.runs();
        let woke = self.stillness.get().newborn_for(self.now()).as_millis() as u64;
        if self.store.borrow().process.has_met_all {
            return woke;
        }
        (NEWBORN_FOR.as_millis() as u64).saturating_sub(self.world.now() - self.born).max(woke)
    }

    pub(crate) fn here<'v>(&self, view: &'v View) -> Here<'v> {
        Here {
            me: self.inc,
            draining: self.draining.get(),
            newborn: self.newborn_for() > 0,
            hears_most: entry::hears_most(view, |peer| self.is_dead(peer)),
            full: self.is_full(),
            view,
            wall: self.wall(),
        }
    }

    /// Without a majority, goes on from this peer's own copy where that is allowed.
    pub(crate) fn fork(self: &Rc<Self>, sid: SessionId, by_key: bool) -> Option<SessionId> {
        let policy = &self.world.knobs.policy;
        let is_left = self.census().is_left_alone(self.now(), policy.majority_timeout);
        let wall = self.wall();
        let may = self.look(sid, |it| alone(it, self.inc, policy, is_left, by_key, wall))?;
        let record = match may {
            Alone::No => return None,
            Alone::Already(into) => return Some(into),
            Alone::From(record) => record,
            Alone::Anew(record) => {
                let is_begun = self
                    .with(sid, false, |machine, ctx, out| machine.begin_anew(ctx, record.p, out))?;
                self.world.count("begun anew alone");
                self.world.note(Some(sid), || format!("{} begins it anew, alone", self.me));
                return is_begun.then_some(sid);
            }
        };
        let new = SessionId(self.world.bytes());
        let cfg = first_members(new, None, policy.copies, &self.here(&self.view.borrow()));
        self.with(new, true, |machine, ctx, out| machine.mint_from(ctx, cfg, &record, out))?;
        let into =
            self.with(sid, false, |machine, ctx, out| fence_at(machine, ctx, record.p, new, out))??;
        self.world.count("forked");
        self.world.forks.borrow_mut().push((sid, into));
        self.world.note(Some(sid), || format!("{} forks it as {new:?}", self.me));
        Some(into)
    }

    fn tried_alone(
        self: &Rc<Self>,
        sid: SessionId,
        by_key: bool,
    ) -> (Option<SessionId>, Option<Config>) {
        let into = self.fork(sid, by_key);
        (into, self.look(sid, |machine| machine.config().cloned()).flatten())
    }

    pub(crate) async fn begin_session(
        self: &Rc<Self>,
        portable: Portable,
        call: &mut Call,
    ) -> Result<LineEnd, ProblemKind> {
        let place = self.place(call.asked.slot, &[]).await?;
        let executor = match &place {
            Place::Here => None,
            Place::There(peer) => self.incarnation_of(peer),
        };
        let sid = SessionId(self.world.bytes());
        let policy = &self.world.knobs.policy;
        let cfg = members_to_begin(sid, executor, policy, &self.here(&self.view.borrow()));
        Ok(self.at_owner(portable, call, sid, Enter::Beginning(cfg), Some(place)).await)
    }

    /// Takes the session over that a token names, or looks for the one that a key does.
    fn seeking(&self, sid: SessionId, errand: &Errand) -> Enter {
        let copies = self.world.knobs.policy.copies;
        let view = self.view.borrow();
        let members = |sid| members_by_key(sid, copies, &self.me, &self.here(&view));
        match errand.otherwise(members) {
            Some(otherwise) => Enter::Seeking { peers: self.whom_to_ask(sid), otherwise },
            None => self.taking_over(sid, errand.token().cloned()),
        }
    }

    pub(crate) fn taking_over(&self, sid: SessionId, token: Option<Config>) -> Enter {
        Enter::TakingOver { token, peers: self.whom_to_ask(sid) }
    }

    pub(crate) async fn at_owner(
        self: &Rc<Self>,
        portable: Portable,
        call: &mut Call,
        sid: SessionId,
        enter: Enter,
        mut place: Option<Place>,
    ) -> LineEnd {
        let asked = call.asked.clone();
        let submit = |ticket| Submit {
            ticket,
            rid: portable.rid,
            fingerprint: asked.fingerprint,
            keyed: asked.keyed,
            seen: portable.seen,
            safe: asked.is_safe() && !asked.keyed,
        };
        let mut line = self.enqueue(sid, submit, enter);
        let mut reruns = Reruns::default();
        let mut tried: Vec<PeerId> = Vec::new();
        let mut held: Option<Served> = None;
        loop {
            match line.next().await {
                Told::Turn => {
                    let chosen = match place.take() {
                        Some(place) => place,
                        // Every peer executes commands on what it owns.
                        None if asked.key.is_some() => Place::Here,
                        None => match self.place(asked.slot, &tried).await {
                            Ok(place) => place,
                            Err(problem) => return LineEnd::Problem(problem),
                        },
                    };
                    let executor = match &chosen {
                        Place::Here => Some(self.inc),
                        Place::There(peer) => self.incarnation_of(peer),
                    };
                    match executor {
                        Some(executor) => line.begin(executor),
                        None => return LineEnd::Elsewhere(None),
                    }
                }
                Told::Again => held = None,
                Told::Execute { executor, exec } => {
                    let ran = if executor == self.inc {
                        self.execute_for_line(call, &line, &exec).await
                    } else {
                        self.execute_there(call, &line, executor, exec, &mut tried).await
                    };
                    match ran {
                        Ok(Some(served)) => held = Some(served),
                        Ok(None) => reruns.came_to_nothing(),
                        Err(problem) => return LineEnd::Problem(problem),
                    }
                }
                Told::Release { hint } => {
                    let Some(mut served) = held.take() else { continue };
                    self.world.confirmed(sid, &served.response);
                    let hint = Hint { cfg: hint.cfg, owner: hint.owner, n: hint.n };
                    served.entry = Some(self.entry_for(sid, hint));
                    return LineEnd::Served(Box::new(served));
                }
                Told::Replay { stored, hint } => return self.replayed(sid, stored, hint),
                Told::Fail(failure) => match reruns.failed(&failure, call.has_body) {
                    Rerun::Again => line = self.enqueue(sid, submit, Enter::AsOwner),
                    Rerun::GiveUp => return LineEnd::Problem(ProblemKind::NoProgress),
                    Rerun::No => return LineEnd::Failed(failure),
                },
                Told::Redirect(to) => return LineEnd::Elsewhere(to),
            }
        }
    }

    /// Answers with what was stored of an earlier request.
    fn replayed(&self, sid: SessionId, stored: Stored, hint: TokenHint) -> LineEnd {
        self.world.count("replayed");
        let response = match stored {
            Stored::Response(response) => response,
            Stored::TooLarge => {
                return LineEnd::Problem(ProblemKind::AppliedTooLargeToRepeat);
            }
            Stored::Applied => return LineEnd::Problem(ProblemKind::AppliedAnswerLost),
            // Its apps write nothing by commands.
            Stored::Unknown | Stored::Begun(_) => {
                return LineEnd::Problem(ProblemKind::KeyOutcomeUnknown);
            }
        };
        let mut served = Served::here(self, response);
        served.replayed = true;
        let hint = Hint { cfg: hint.cfg, owner: hint.owner, n: hint.n };
        served.entry = Some(self.entry_for(sid, hint));
        LineEnd::Served(Box::new(served))
    }

    pub(crate) async fn execute_for_line(
        self: &Rc<Self>,
        call: &mut Call,
        line: &InLine,
        exec: &Exec,
    ) -> Result<Option<Served>, ProblemKind> {
        match self.execute_here(call, line.sid, exec).await {
            Ok((response, done)) => {
                line.executed(Outcome::from(done));
                Ok(Some(Served::here(self, response)))
            }
            Err(LocalError::NotReady) => {
                line.executed(Outcome::Failed);
                Ok(None)
            }
            Err(LocalError::Refused(done)) => {
                line.executed(Outcome::from(done));
                Ok(None)
            }
            Err(LocalError::Failed | LocalError::BodyGone) => {
                line.executed(Outcome::Failed);
                Err(ProblemKind::AppFailed)
            }
        }
    }

    pub(crate) async fn execute_there(
        self: &Rc<Self>,
        call: &mut Call,
        line: &InLine,
        executor: Incarnation,
        exec: Exec,
        tried: &mut Vec<PeerId>,
    ) -> Result<Option<Served>, ProblemKind> {
        let to =
            self.view.borrow().by_incarnation(&executor).map(|belief| belief.news.peer.clone());
        let Some(to) = to else {
            line.executed(Outcome::Failed);
            return Ok(None);
        };
        match self.ask(&to, call, HopKind::Exec { sid: line.sid, exec }).await {
            Ok(HopReply { response, session: ReplySession::Done(done), served_by }) => {
                line.executed(Outcome::from(done));
                let mut served = Served::here(self, response);
                served.served_by = served_by;
                Ok(Some(served))
            }
            Ok(_) => {
                line.executed(Outcome::Failed);
                Err(ProblemKind::OutcomeUnknown)
            }
            Err(HopError::Refused(HopRefusal::Exec(done))) => {
                line.executed(Outcome::from(done));
                Ok(None)
            }
            Err(error) => {
                line.executed(Outcome::Failed);
                after_failed_hop(call, &error)?;
                tried.push(to);
                Ok(None)
            }
        }
    }

    pub(crate) async fn forward(
        self: &Rc<Self>,
        call: &mut Call,
        sid: SessionId,
        forward: Forward,
        to: &PeerId,
    ) -> LineEnd {
        match self.ask(to, call, HopKind::Forward(forward)).await {
            Ok(reply) => {
                let mut served = Served::here(self, reply.response);
                served.served_by = reply.served_by;
                if let ReplySession::Committed { hint, replayed } = reply.session {
                    served.replayed = replayed;
                    self.gave(sid, hint.n);
                    served.entry = Some(self.entry_for(sid, hint));
                }
                LineEnd::Served(Box::new(served))
            }
            Err(HopError::Refused(HopRefusal::NotOwner { claim })) => {
                self.with(sid, false, |machine, _, _| machine.note_claim(claim));
                LineEnd::Elsewhere(claim)
            }
            Err(HopError::Refused(HopRefusal::Lost(failure))) => LineEnd::Failed(failure),
            Err(HopError::Refused(HopRefusal::Problem(problem))) => LineEnd::Problem(problem),
            Err(error) => match after_failed_hop(call, &error) {
                Ok(()) => LineEnd::Elsewhere(None),
                Err(problem) => LineEnd::Problem(problem),
            },
        }
    }

    pub(crate) fn entry_for(&self, sid: SessionId, hint: Hint) -> Entry {
        Entry {
            app: app_name(SHOP),
            sid,
            kind: Kind::Portable { cfg: hint.cfg, owner: hint.owner, n: hint.n },
            version: None,
            expiry: self.wall().after(self.world.knobs.policy.ttl),
        }
    }

    /// Serves a request for another peer, which does not hear its owner.
    async fn serve_relayed(
        self: &Rc<Self>,
        call: &mut Call,
        forward: &Forward,
        (by, begins): (Incarnation, bool),
    ) -> Result<Served, HopRefusal> {
        let portable =
            Portable { rid: forward.rid, seen: forward.seen, hops_left: forward.hops_left };
        if let Some(cfg) = forward.cfg.clone() {
            let Forward { sid, owner, n, .. } = *forward;
            let named = Named { sid, cfg, owner, n };
            let errand = Errand::relayed_token(self.asked(portable, call), named, by);
            return self.serve_relayed_token(portable, call, forward, errand).await;
        }
        let key = ByKey { sid: forward.sid, begins };
        let mut errand = Errand::relayed(self.asked(portable, call), key);
        let served = Box::pin(self.run_errand(portable, call, &mut errand)).await;
        served.map_err(HopRefusal::Problem)
    }

    /// As [`Peer::serve_relayed`], where a token names the session.
    async fn serve_relayed_token(
        self: &Rc<Self>,
        portable: Portable,
        call: &mut Call,
        forward: &Forward,
        mut errand: Errand,
    ) -> Result<Served, HopRefusal> {
        loop {
            let attempt = Box::pin(self.attempt(portable, call, &mut errand)).await;
            let end = attempt.unwrap_or_else(LineEnd::Problem);
            call.may_have_run |= errand.may_have_run();
            let ended = match &end {
                LineEnd::Elsewhere(other) => End::Elsewhere(*other),
                LineEnd::Failed(failure) => End::Failed(*failure),
                LineEnd::Served(_) | LineEnd::Problem(_) => return self.tell_entry(forward, end),
            };
            let mut after =
                errand.relayed_ended(ended, call.has_body, &self.here(&self.view.borrow()));
            if let Relayed::TryAlone(failure) = after {
                let (into, cfg) = self.tried_alone(forward.sid, errand.is_by_key());
                let view = self.view.borrow();
                let here = self.here(&view);
                after = errand.relayed_alone(failure, into, cfg.as_ref(), call.has_body, &here);
            }
            let end = match after {
                Relayed::Again { back_off } => {
                    if !back_off.is_zero() {
                        self.sleep(self.world.below(back_off.as_millis() as u64)).await;
                    }
                    continue;
                }
                Relayed::TryAlone(failure) | Relayed::Tell(Some(failure)) => {
                    LineEnd::Failed(failure)
                }
                Relayed::Tell(None) => end,
            };
            return self.tell_entry(forward, end);
        }
    }

    pub(crate) async fn serve_forwarded(
        self: &Rc<Self>,
        call: &mut Call,
        forward: &Forward,
    ) -> Result<Served, HopRefusal> {
        let sid = forward.sid;
        if let Some(cfg) = forward.cfg.as_ref().filter(|_| forward.n == 0 && !forward.keyed) {
            let look = self.look(sid, Look::of).unwrap_or_default();
            if is_void(cfg, look, &self.here(&self.view.borrow())) {
                return Err(HopRefusal::Lost(Failure::Lost { ran: false }));
            }
        }
        if let Some(relay) = forward.relay {
            return self.serve_relayed(call, forward, relay).await;
        }
        if let Some(to) = self.way_on(forward) {
            return self.send_on(call, forward, to).await;
        }
        if let Some(claim) = self.leaves_to_others(sid) {
            self.world.count("left to others");
            return Err(HopRefusal::NotOwner { claim });
        }
        let has_token = forward.cfg.is_some();
        let answer =
            |machine: Option<&Session>| answer_forward(machine, self.inc, forward.owner, has_token);
        let answer =
            self.look(sid, |machine| answer(Some(machine))).unwrap_or_else(|| answer(None));
        let enter = match answer {
            Forwarded::Serve { take_over: false } => Enter::AsOwner,
            Forwarded::Serve { take_over: true } => self.taking_over(sid, forward.cfg.clone()),
            Forwarded::NotOwner { claim, .. } => return Err(HopRefusal::NotOwner { claim }),
        };
        let portable =
            Portable { rid: forward.rid, seen: forward.seen, hops_left: forward.hops_left };
        let end = self.at_owner(portable, call, sid, enter, None).await;
        if let Some(to) = forward.hand_off {
            self.world.count("handed off");
            self.with(sid, false, |machine, ctx, out| machine.hand_off(ctx, to, out));
        }
        self.tell_entry(forward, end)
    }

    /// The claim of an owner that does not hear its session's members, where nobody goes on without them.
    fn leaves_to_others(&self, sid: SessionId) -> Option<Option<Ballot>> {
        if self.world.knobs.policy.without_majority == WithoutMajority::Serve {
            return None;
        }
        let view = self.view.borrow();
        let cut_off =
            |machine: &Session| is_cut_off(machine, &self.here(&view)).then(|| machine.claim());
        self.look(sid, cut_off).flatten()
    }

    /// The outcome of a request here, for the peer that forwarded it.
    pub(crate) fn tell_entry(
        self: &Rc<Self>,
        forward: &Forward,
        end: LineEnd,
    ) -> Result<Served, HopRefusal> {
        let sid = forward.sid;
        let end = match end {
            LineEnd::Failed(failure) if tries_alone(&failure) => {
                let went_on = |into| Failure::WentOn { into, by: self.inc };
                LineEnd::Failed(self.fork(sid, forward.cfg.is_none()).map_or(failure, went_on))
            }
            end => end,
        };
        match end {
            LineEnd::Served(served) => Ok(*served),
            // The peer that forwarded it may know more.
            LineEnd::Failed(Failure::Lost { ran: false }) if self.newborn_for() > 0 => {
                Err(HopRefusal::NotOwner { claim: None })
            }
            LineEnd::Elsewhere(_) | LineEnd::Failed(Failure::Absent) => {
                let claim = self.look(sid, |machine| machine.claim()).flatten();
                Err(HopRefusal::NotOwner { claim })
            }
            LineEnd::Failed(failure) if is_for_entry(&failure) => Err(HopRefusal::Lost(failure)),
            LineEnd::Failed(failure) => Err(HopRefusal::Problem(failure.problem())),
            LineEnd::Problem(problem) => Err(HopRefusal::Problem(problem)),
        }
    }
}

/// Whether the request may go elsewhere after a hop that brought no response.
pub(crate) fn after_failed_hop(call: &Call, error: &HopError) -> Result<(), ProblemKind> {
    let app_may_have_seen_it = match error {
        HopError::Unreachable => false,
        HopError::Refused(HopRefusal::AppFailed) => true,
        HopError::Refused(_) => false,
        HopError::Broken => true,
    };
    let asked = &call.asked;
    let portable = asked.slot == SHOP;
    let again = may_retry(Attempted {
        is_safe: asked.is_safe(),
        has_key: asked.keyed,
        effects: EffectsMode::Anything,
        is_portable: portable,
        may_have_reached_app: app_may_have_seen_it,
    });
    if again && call.has_body {
        return Ok(());
    }
    Err(match error {
        HopError::Refused(HopRefusal::AppFailed) => ProblemKind::AppFailed,
        HopError::Refused(_) => ProblemKind::HopRefused,
        HopError::Unreachable => ProblemKind::HopUnreachable,
        HopError::Broken => ProblemKind::OutcomeUnknown,
    })
}
