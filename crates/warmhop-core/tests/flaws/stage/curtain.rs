//! What happens to messages, and the machinery behind the curtain.

use std::sync::Arc;

use warmhop_core::ids::{Incarnation, Now, Position, SessionId, WallTime};
use warmhop_core::session::message::{Base, Body, BodyRef, ExecDone, Message, NackReason, Stored};
use warmhop_core::session::{Ctx, Effect, Effects, Outcome, Session, Ticket, TokenHint};

use super::speech::{
    ballot, config, has, letter, life_name, list_of, position, reason, spoken_message,
    spoken_outcome, words,
};
use super::{DAWN, End, Health, Kind, Packet, Run, STEPS_MAX, Seen, Stage, What};

fn words_of_stored(stored: Stored) -> String {
    match stored {
        Stored::Response(bytes) => {
            let text = String::from_utf8_lossy(&bytes).into_owned();
            format!("again: {}", text.trim_end_matches('.'))
        }
        Stored::TooLarge => "applied, too large to repeat".into(),
        Stored::Applied => "applied before".into(),
        Stored::Unknown | Stored::Begun(_) => "outcome unknown".into(),
    }
}

/// What happens to messages. One is named by its kind, its way and words that its line contains:
/// `Nack B>A Higher`.
impl Stage {
    /// The oldest such message arrives.
    #[track_caller]
    pub(crate) fn arrives(&mut self, pattern: &str) {
        let packet = if let Some(at) = self.flying.iter().position(|it| self.fits(it, pattern)) {
            self.flying.remove(at)
        } else {
            let at = self.held_back.iter().position(|it| self.fits(it, pattern));
            at.map(|at| self.held_back.remove(at))
        };
        let Some(packet) = packet else {
            self.fail(&format!("no such message is on its way: {pattern}"));
        };
        self.deliver("arrives", packet);
    }

    /// The last such message that arrived arrives once more.
    #[track_caller]
    pub(crate) fn arrives_again(&mut self, pattern: &str) {
        let Some(at) = self.arrived.iter().rposition(|it| self.fits(it, pattern)) else {
            self.fail(&format!("no such message arrived: {pattern}"));
        };
        self.deliver("arrives again", self.arrived[at].clone());
    }

    /// Such messages never arrive.
    #[track_caller]
    pub(crate) fn loses(&mut self, pattern: &str) {
        for packet in self.take(pattern) {
            self.say(format!("never arrives: {}", self.words_of(&packet)));
        }
    }

    /// Such messages are late: they arrive once the story says so.
    #[track_caller]
    pub(crate) fn holds_back(&mut self, pattern: &str) {
        for packet in self.take(pattern) {
            self.say(format!("is late: {}", self.words_of(&packet)));
            self.held_back.push(packet);
        }
    }

    #[track_caller]
    pub(super) fn take(&mut self, pattern: &str) -> Vec<Packet> {
        let (taken, left): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.flying).into_iter().partition(|it| self.fits(it, pattern));
        self.flying = left.into();
        if taken.is_empty() {
            self.fail(&format!("no such message is on its way: {pattern}"));
        }
        taken
    }

    /// Such a message is on its way.
    #[track_caller]
    pub(crate) fn is_sent(&self, pattern: &str) {
        if !self.flying.iter().any(|it| self.fits(it, pattern)) {
            self.fail(&format!("this should be on its way: {pattern}"));
        }
    }

    /// No such message is on its way.
    #[track_caller]
    pub(crate) fn is_not_sent(&self, pattern: &str) {
        if self.flying.iter().any(|it| self.fits(it, pattern)) {
            self.fail(&format!("this should not be on its way: {pattern}"));
        }
    }

    /// An execution ends: `tea`, or `tea at B`.
    #[track_caller]
    pub(crate) fn ends(&mut self, what: &str) {
        let (name, executor) = what.split_once(" at ").unwrap_or((what, ""));
        let found = self.runs.iter().position(|run| {
            self.name_of(run.ticket) == name
                && (executor.is_empty() || life_name(run.executor) == executor)
        });
        let Some(at) = found else { self.fail(&format!("it does not run: {what}")) };
        self.end(at);
    }

    /// Everything that can arrive does, in the order in which it was sent, and whatever runs ends.
    #[track_caller]
    pub(crate) fn settles(&mut self) {
        for _ in 0..STEPS_MAX {
            let up = |inc: Incarnation| {
                self.peers.get(&(inc.0[0] as char)).map(|peer| peer.health) == Some(Health::Well)
            };
            let may_arrive = |it: &Packet| {
                let paused = self.peers[&(it.to.0[0] as char)].health == Health::Paused;
                !paused && !self.is_cut(it.from, it.to)
            };
            if let Some(at) = self.flying.iter().position(may_arrive)
                && let Some(packet) = self.flying.remove(at)
            {
                self.deliver("arrives", packet);
            } else if let Some(at) = self.runs.iter().position(|run| up(run.executor)) {
                self.end(at);
            } else {
                return;
            }
        }
        self.fail("the story goes in circles");
    }
}

/// The machinery behind the curtain.
impl Stage {
    pub(super) fn say(&mut self, line: impl Into<String>) {
        self.lines.push(line.into());
    }

    #[track_caller]
    pub(crate) fn fail(&self, what: &str) -> ! {
        panic!("{what}, as the narrative of \"{}\" shows", self.title);
    }

    #[track_caller]
    pub(super) fn on<R>(
        &mut self,
        name: &str,
        work: impl FnOnce(&mut Session, &mut Ctx<'_>, &mut Effects) -> R,
    ) -> R {
        self.on_session(letter(name), self.sid, work)
    }

    #[track_caller]
    pub(super) fn on_session<R>(
        &mut self,
        name: char,
        sid: SessionId,
        work: impl FnOnce(&mut Session, &mut Ctx<'_>, &mut Effects) -> R,
    ) -> R {
        let wall = self.wall(name);
        let Some(peer) = self.peers.get_mut(&name) else {
            panic!("there is no peer {name}");
        };
        assert!(peer.health == Health::Well, "{name} cannot do anything now");
        let mut out = Effects::new();
        let mut ctx = Ctx {
            me: peer.inc,
            now: Now(self.now),
            wall,
            policy: &self.policy,
            process: &mut peer.process,
            dice: 0,
        };
        let fresh = || Session::new(sid, ctx.process);
        let machine = peer.machines.entry(sid).or_insert_with(fresh);
        let watermark = ctx.process.watermark;
        let (promised, version) = (machine.promised(), machine.holds_copy());
        let result = work(machine, &mut ctx, &mut out);
        let forgot = peer.process.watermark > watermark || version && !machine.holds_copy();
        let fell = machine.promised() < promised && !forgot;
        if machine.forgotten() {
            peer.machines.remove(&sid);
        }
        if fell {
            self.fail(&format!("I2: what {name} promised fell"));
        }
        let me = self.peers[&name].inc;
        for effect in out {
            self.carry_out(me, sid, effect);
        }
        result
    }

    pub(super) fn carry_out(&mut self, me: Incarnation, sid: SessionId, effect: Effect) {
        let name = life_name(me);
        match effect {
            Effect::Send { to, message } => {
                if let Message::Accept { p, body: BodyRef::Full(body), .. } = &message {
                    self.note_body(sid, *p, body);
                }
                self.send(Packet { sid, from: me, to, what: What::Protocol(message) });
            }
            Effect::Turn { ticket } => {
                let executor = self.inc(&self.attempts[ticket.0 as usize - 1].executor);
                self.on_session(me.0[0] as char, sid, |machine, ctx, out| {
                    machine.begin(ctx, ticket, executor, out);
                });
            }
            Effect::Execute { ticket, executor, exec } => {
                self.attempts[ticket.0 as usize - 1].ordered = Some(exec.p);
                let packet =
                    Packet { sid, from: me, to: executor, what: What::Order { ticket, exec } };
                if executor == me {
                    self.deliver("orders itself:", packet);
                } else {
                    self.send(packet);
                }
            }
            Effect::Release { ticket, hint } => {
                let Some(seen) = self.attempts[ticket.0 as usize - 1].response.clone() else {
                    self.fail("a response was released that no app gave");
                };
                self.answer(me, ticket, &seen.list, seen.afresh, Some(hint));
            }
            Effect::Replay { ticket, stored, hint } => {
                self.answer(me, ticket, &words_of_stored(stored), false, Some(hint));
            }
            Effect::Fail { ticket, failure } => {
                let request = self.name_of(ticket);
                self.say(format!("  {name} tells the client of {request}: {}", reason(failure)));
                self.attempts[ticket.0 as usize - 1].end = End::Failed(failure);
            }
            Effect::Redirect { ticket, to } => {
                let request = self.name_of(ticket);
                let to = to.map(|claim| claim.proposer);
                let whom = to.map_or("the peer that takes it over".into(), life_name);
                self.say(format!("  {name} sends {request} on to {whom}"));
                self.attempts[ticket.0 as usize - 1].end = End::SentOn(to);
            }
            Effect::Again { ticket } => {
                let request = self.name_of(ticket);
                self.say(format!("  {name} drops the response of {request}, which runs again"));
            }
            Effect::Invited { cfg } => {
                self.say(format!("  {name} is invited to take the session over"));
                let from = self.arrived.last().map_or(me, |packet| packet.from);
                self.on_session(me.0[0] as char, sid, |machine, ctx, out| {
                    machine.on_invite(ctx, from, cfg.into(), &[], out);
                });
            }
            Effect::Owned { ballot: b } => {
                self.say(format!("  {name} owns the session and serves it, at {}", ballot(b)));
            }
            Effect::Opened { cfg } => {
                self.say(format!("  {name} knows the change of members done: {}", config(&cfg)));
            }
            Effect::Deposed { by } => {
                self.say(format!("  {name} owns the session no longer: {} does", ballot(by)));
            }
            Effect::GaveUp => {
                self.say(format!("  {name} gives up: it finds no majority"));
            }
            Effect::Lost { .. } => {
                self.say(format!("  {name} says that the session is lost"));
            }
            Effect::FewCopies => {
                self.to_look_at.insert(name);
            }
            Effect::Located { .. } | Effect::Lagging | Effect::Claimed => {}
        }
    }

    pub(super) fn note_body(&mut self, sid: SessionId, p: Position, body: &Arc<Body>) {
        let known = self.bodies.entry((sid, p)).or_insert_with(|| body.clone());
        if known != body {
            let both = format!("[{}] and [{}]", list_of(known), list_of(body));
            self.fail(&format!("I1: {} names two bodies, {both}", position(p)));
        }
    }

    pub(super) fn send(&mut self, packet: Packet) {
        let words = self.words_of(&packet);
        if self.is_cut(packet.from, packet.to) {
            self.say(format!("  in vain: {words}"));
            return;
        }
        self.say(format!("  {words}"));
        self.flying.push_back(packet);
    }

    pub(super) fn is_cut(&self, from: Incarnation, to: Incarnation) -> bool {
        self.cuts.contains(&(from.0[0] as char, to.0[0] as char))
    }

    pub(super) fn deliver(&mut self, how: &str, packet: Packet) {
        self.say(format!("{how} {}", self.words_of(&packet)));
        self.arrived.push(packet.clone());
        let Packet { sid, from, to, what } = packet;
        let name = to.0[0] as char;
        let peer = &self.peers[&name];
        match peer.health {
            Health::Well => {}
            Health::Paused => panic!("{name} is suspended and hears nothing"),
            Health::Down => {
                self.say("  nobody is there");
                return;
            }
        }
        if peer.inc != to {
            self.answer_for_the_dead(sid, from, to, what);
            return;
        }
        if let What::Protocol(Message::Accept { body: BodyRef::Full(_), .. }) = &what
            && peer.is_full
        {
            let reason = NackReason::Full;
            let message = Message::Nack { reason, promised: None, cfg: None, watermark: 0 };
            self.send(Packet { sid, from: to, to: from, what: What::Protocol(message) });
            return;
        }
        match what {
            What::Protocol(message) => {
                self.on_session(name, sid, |machine, ctx, out| {
                    machine.on_message(ctx, from, message, out);
                });
            }
            What::Order { ticket, exec } => {
                let begun =
                    self.on_session(name, sid, |machine, ctx, _| machine.exec_begin(ctx, &exec));
                match begun {
                    Ok(base) => {
                        let held = list_of(&base);
                        let request = self.name_of(ticket);
                        self.say(format!("  {} runs {request} on [{held}]", life_name(to)));
                        self.runs.push(Run { sid, owner: from, executor: to, ticket, exec, base });
                    }
                    Err(done) => self.report(sid, to, from, ticket, exec.p, done, Seen::default()),
                }
            }
            What::Result { ticket, p, outcome, seen } => {
                let attempt = &mut self.attempts[ticket.0 as usize - 1];
                if attempt.ordered == Some(p) {
                    attempt.response = Some(seen);
                }
                self.on_session(name, sid, |machine, ctx, out| {
                    machine.executed(ctx, ticket, p, outcome, out);
                });
            }
        }
    }

    /// The peer lives as another, which says so to those that ask for the one that it was.
    pub(super) fn answer_for_the_dead(
        &mut self,
        sid: SessionId,
        from: Incarnation,
        to: Incarnation,
        what: What,
    ) {
        let reason = NackReason::Dead;
        match what {
            What::Protocol(
                Message::Prepare { .. }
                | Message::Accept { .. }
                | Message::Locate { .. }
                | Message::Begin { .. },
            ) => {
                let message = Message::Nack { reason, promised: None, cfg: None, watermark: 0 };
                self.send(Packet { sid, from: to, to: from, what: What::Protocol(message) });
            }
            What::Order { ticket, exec } => {
                let done = ExecDone::Refused { reason, promised: None, watermark: 0 };
                self.report(sid, to, from, ticket, exec.p, done, Seen::default());
            }
            What::Protocol(_) | What::Result { .. } => {
                self.say(format!("  {} is gone and hears it not", life_name(to)));
            }
        }
    }

    #[expect(clippy::too_many_arguments, reason = "an execution's end, as it travels")]
    pub(super) fn report(
        &mut self,
        sid: SessionId,
        executor: Incarnation,
        owner: Incarnation,
        ticket: Ticket,
        p: Option<Position>,
        done: ExecDone,
        seen: Seen,
    ) {
        if let (Some(p), ExecDone::Changed { body, voted: true }) = (p, &done) {
            self.note_body(sid, p, body);
        }
        let outcome = Outcome::from(done);
        let what = What::Result { ticket, p, outcome, seen };
        let packet = Packet { sid, from: executor, to: owner, what };
        if executor == owner {
            self.deliver("answers itself:", packet);
        } else {
            self.send(packet);
        }
    }

    pub(super) fn end(&mut self, at: usize) {
        let Run { sid, owner, executor, ticket, exec, base } = self.runs.remove(at);
        let name = executor.0[0] as char;
        let request = &self.requests[self.attempts[ticket.0 as usize - 1].request];
        let Kind { read, large, .. } = request.kind;
        // Each run has a result of its own, as if the app asked for the time.
        let ran = self.ran.entry((executor, request.name.clone())).or_default();
        *ran += 1;
        let nth = if *ran > 1 { format!("#{ran}") } else { String::new() };
        let item = format!("{}/{name}{nth}", request.name);
        let wall = self.wall(name);
        // Forgotten after its time, it is begun again as if it had never been there.
        let token = self.histories.get(&sid).and_then(|it| it.token.as_ref());
        let was_forgotten = base.expiry.0 == 0 && token.is_some_and(|token| token.expiry < wall);
        let afresh = was_forgotten || base.expiry.0 != 0 && base.expiry < wall;
        let mut list = if afresh { String::new() } else { list_of(&base) };
        if !read {
            list = format!("{list} {item}").trim_start().into();
        }
        let end = if afresh { ", the session's time being over" } else { "" };
        self.say(format!(
            "{} has run {}: [{list}]{end}",
            life_name(executor),
            self.name_of(ticket)
        ));
        let change = (!read).then(|| Some(Arc::from(list.as_bytes())));
        let tail = if large { ".".repeat(200) } else { String::new() };
        let stored = match exec.keyed {
            true => Stored::Response(Arc::from(format!("{list}{tail}").as_bytes())),
            false => Stored::Applied,
        };
        let until = self.lasts.filter(|_| !read).map(|span| self.wall(name).after(span));
        let done = self.on_session(name, sid, |machine, ctx, _| match until {
            Some(until) => machine.exec_end_until(ctx, &exec, &base, change, until),
            None => machine.exec_end(ctx, &exec, &base, change, stored),
        });
        self.report(sid, executor, owner, ticket, exec.p, done, Seen { list, afresh });
    }

    /// A client gets its answer, and the stage judges it.
    pub(super) fn answer(
        &mut self,
        me: Incarnation,
        ticket: Ticket,
        answer: &str,
        afresh: bool,
        token: Option<TokenHint>,
    ) {
        let name = life_name(me);
        let request = self.name_of(ticket);
        self.say(format!("  {name} answers the client of {request}: [{answer}]"));
        let attempt = &mut self.attempts[ticket.0 as usize - 1];
        attempt.end = End::Answered(answer.into());
        let is_replay = attempt.response.is_none();
        let request = &self.requests[attempt.request];
        let now = WallTime(DAWN + self.now);
        let history = self.histories.entry(attempt.sid).or_default();
        let mut wrong = None;
        if afresh {
            if history.token.as_ref().is_some_and(|token| now <= token.expiry) {
                wrong = Some("a session began afresh before its time was over".to_owned());
            }
            history.acknowledged.clear();
            history.longest.clear();
        }
        if !is_replay {
            let list = words(answer);
            let name_of = |item: &String| item.split('/').next().unwrap_or_default().to_owned();
            let mut names: Vec<String> = list.iter().map(name_of).collect();
            for lost in request.before.iter().filter(|it| !afresh && !has(&list, it)) {
                wrong = Some(format!("I8: {lost} was acknowledged before, and is lost"));
            }
            let both = list.len().min(history.longest.len());
            if list[..both] != history.longest[..both] {
                wrong = Some(format!("I4: two histories, [{}]", history.longest.join(" ")));
            }
            if list.len() > history.longest.len() {
                history.longest = list;
            }
            names.sort_unstable();
            if names.windows(2).any(|pair| pair[0] == pair[1]) {
                wrong = Some("I6: a request was applied twice".into());
            }
        }
        if !request.kind.read && !history.acknowledged.contains(&request.name) {
            history.acknowledged.push(request.name.clone());
        }
        history.token = token.or(history.token.take());
        if let Some(wrong) = wrong {
            self.fail(&wrong);
        }
    }

    pub(super) fn name_of(&self, ticket: Ticket) -> String {
        self.requests[self.attempts[ticket.0 as usize - 1].request].name.clone()
    }

    pub(super) fn fits(&self, packet: &Packet, pattern: &str) -> bool {
        let line = self.words_of(packet);
        let mut asked = pattern.split(' ');
        let mut words = line.split(' ');
        asked.by_ref().take(2).eq(words.by_ref().take(2)) && {
            let rest = words.collect::<Vec<_>>().join(" ");
            asked.all(|word| rest.contains(word))
        }
    }

    /// A message in one line: its kind, its way, what it says.
    pub(super) fn words_of(&self, packet: &Packet) -> String {
        let way = format!("{}>{}", life_name(packet.from), life_name(packet.to));
        let (kind, text) = match &packet.what {
            What::Protocol(message) => spoken_message(message),
            What::Order { ticket, exec } => {
                let base = match &exec.base {
                    Base::Held(p) => format!("what it holds at {}", position(*p)),
                    Base::Inline(None) => "nothing".into(),
                    Base::Inline(Some(record)) => {
                        format!("{} [{}]", position(record.p), list_of(&record.body))
                    }
                };
                let vote = if exec.vote { ", with its vote" } else { "" };
                let name = self.name_of(*ticket);
                let p = exec.p.map_or(String::new(), |p| format!(" as {}", position(p)));
                ("Exec", format!("{name}{p} on {base}{vote}"))
            }
            What::Result { ticket, p, outcome, .. } => {
                let name = self.name_of(*ticket);
                let p = p.map_or(String::new(), |p| format!(" as {}", position(p)));
                ("ExecDone", format!("{name}{p}: {}", spoken_outcome(outcome)))
            }
        };
        format!("{kind} {way} {text}").trim_end().to_owned()
    }
}
