//! Requests in line at one machine, and those that were forwarded to it.

use std::time::Duration;

use warmhop_core::config::{SessionPolicy, WithoutMajority};
use warmhop_core::ids::{Ballot, Incarnation, Now, RequestKey, SessionId, WallTime};
use warmhop_core::session::entry::*;
use warmhop_core::session::message::{
    Body, Config, Exec, ExecDone, Members, Message, NackReason, Stored,
};
use warmhop_core::session::{
    Ctx, Effect, Effects, Failure, Outcome, Process, Session, Submit, Ticket,
};

use super::{ME, SID, WALL, claim, inc, named};

/// One process with sessions that it holds alone.
struct Solo {
    policy: SessionPolicy,
    process: Process,
    tickets: u64,
}

impl Solo {
    fn new(policy: SessionPolicy) -> Self {
        Self { policy, process: Process::default(), tickets: 0 }
    }

    fn on<R>(
        &mut self,
        machine: &mut Session,
        work: impl FnOnce(&mut Session, &mut Ctx<'_>, &mut Effects) -> R,
    ) -> (R, Effects) {
        let mut ctx = Ctx {
            me: ME,
            now: Now(1),
            wall: WALL,
            policy: &self.policy,
            process: &mut self.process,
            dice: 0,
        };
        let mut out = Vec::new();
        let result = work(machine, &mut ctx, &mut out);
        (result, out)
    }

    fn mint(&mut self, sid: SessionId, who: &[Incarnation]) -> Session {
        let cfg = Config { now: Members::first(WALL.0, who.iter().copied()), prev: None };
        let mut machine = Session::new(sid, &self.process);
        self.on(&mut machine, |machine, ctx, out| machine.mint(ctx, cfg, out));
        machine
    }

    /// Sends a keyed request that changes the state, and executes it here.
    fn keyed(&mut self, machine: &mut Session, rid: u8, seen: Option<u64>) -> Effect {
        self.carried_out(machine, rid, seen, |machine, ctx, exec, base| {
            machine.exec_end(ctx, exec, base, Some(Some(vec![1].into())), Stored::Applied)
        })
    }

    /// Sends a keyed request that runs no app.
    fn ordered(
        &mut self,
        machine: &mut Session,
        rid: u8,
        order: impl Fn(&mut Session, &mut Ctx<'_>, &Exec, &Body) -> ExecDone,
    ) -> Effect {
        self.carried_out(machine, rid, None, order)
    }

    fn carried_out(
        &mut self,
        machine: &mut Session,
        rid: u8,
        seen: Option<u64>,
        order: impl Fn(&mut Session, &mut Ctx<'_>, &Exec, &Body) -> ExecDone,
    ) -> Effect {
        self.tickets += 1;
        let ticket = Ticket(self.tickets);
        let rid = RequestKey([rid; 16]);
        let submit = Submit { ticket, rid, fingerprint: 1, keyed: true, seen, safe: false };
        let (_, mut out) = self.on(machine, |machine, ctx, out| machine.submit(ctx, submit, out));
        while let Some(effect) = out.pop() {
            match effect {
                Effect::Turn { ticket } => {
                    out.extend(self.on(machine, |it, ctx, out| it.begin(ctx, ticket, ME, out)).1);
                }
                Effect::Execute { ticket, exec, .. } => {
                    let (done, _) = self.on(machine, |machine, ctx, _| {
                        let base = machine.exec_begin(ctx, &exec).unwrap();
                        order(machine, ctx, &exec, &base)
                    });
                    let outcome = Outcome::from(done);
                    let ended = self.on(machine, |machine, ctx, out| {
                        machine.executed(ctx, ticket, exec.p, outcome, out);
                    });
                    out.extend(ended.1);
                }
                Effect::Send { .. } | Effect::FewCopies | Effect::Owned { .. } => {}
                end => return end,
            }
        }
        panic!("the request came to no end");
    }

    fn number(effect: &Effect) -> u64 {
        match effect {
            Effect::Release { hint, .. } => hint.n,
            other => panic!("{other:?}"),
        }
    }
}

fn alone_policy() -> SessionPolicy {
    SessionPolicy::default().with(|made| {
        made.without_majority = WithoutMajority::Serve;
        made.recent_keyed_max = 2;
    })
}

#[test]
fn a_peer_goes_on_alone_where_the_policy_says_so_or_its_copy_must_hold_everything() {
    let may = |pair: bool, by_key: bool, policy: SessionPolicy, who: &[Incarnation]| {
        let mut solo = Solo::new(policy.clone());
        let mut machine = solo.mint(SID, &[ME]);
        solo.keyed(&mut machine, 1, None);
        if who.len() > 1 {
            // The same record under other members.
            let mut other = Session::new(SID, &solo.process);
            let Alone::From(mut record) = alone(&machine, ME, &alone_policy(), false, false, WALL)
            else {
                panic!()
            };
            record.cfg =
                Config { now: Members::first(WALL.0, who.iter().copied()), prev: None }.into();
            record.p.ballot = Ballot { round: 9, proposer: inc(2) };
            let message = warmhop_core::session::message::Message::Accept {
                p: record.p,
                cfg: record.cfg,
                body: warmhop_core::session::message::BodyRef::Full(record.body),
            };
            solo.on(&mut other, |it, ctx, out| it.on_message(ctx, inc(2), message, out));
            machine = other;
        }
        alone(&machine, ME, &policy, pair, by_key, WALL)
    };
    let held_in = |pair, policy, who: &[Incarnation]| may(pair, false, policy, who);
    let held = |policy, who: &[Incarnation]| held_in(false, policy, who);
    let refuse = SessionPolicy::default();
    let two = [ME, inc(2)];
    assert!(matches!(held_in(true, refuse.clone(), &two), Alone::From(_)), "of two peers");
    assert_eq!(held(refuse.clone(), &two), Alone::No, "where more live, the other may go on");
    assert_eq!(held(refuse.clone(), &[ME, inc(2), inc(3)]), Alone::No);
    assert!(matches!(held(alone_policy(), &[ME, inc(2), inc(3)]), Alone::From(_)));
    let by_key = |pair, policy, who: &[Incarnation]| may(pair, true, policy, who);
    assert!(matches!(by_key(true, refuse.clone(), &two), Alone::Anew(_)), "under its own id");
    assert_eq!(by_key(false, refuse.clone(), &two), Alone::No);
    let beside_a_majority = by_key(false, alone_policy(), &[ME, inc(2), inc(3)]);
    assert!(matches!(beside_a_majority, Alone::From(_)), "the majority may have kept its id");
    let nothing = Session::new(SID, &Process::default());
    assert_eq!(alone(&nothing, ME, &alone_policy(), false, false, WALL), Alone::No);
}

#[test]
fn an_ended_session_can_be_continued_for_as_long_as_it_is_remembered() {
    let mut solo = Solo::new(alone_policy());
    let mut machine = solo.mint(SID, &[ME]);
    solo.keyed(&mut machine, 1, None);
    let ends = WALL.after(solo.policy.ttl);
    let at = |wall| alone(&machine, ME, &solo.policy, false, false, wall);
    assert!(matches!(at(WallTime(ends.0 - 1)), Alone::From(_)));
    let forgotten = ends.after(solo.policy.forget_grace);
    assert!(matches!(at(ends), Alone::From(_)), "its key can be set again");
    assert!(matches!(at(WallTime(forgotten.0 - 1)), Alone::From(_)));
    assert_eq!(at(forgotten), Alone::No, "everyone would forget it at once");
}

#[test]
fn a_copy_is_fenced_only_at_the_record_that_the_other_session_was_minted_from() {
    let mut solo = Solo::new(alone_policy());
    let mut machine = solo.mint(SID, &[ME]);
    solo.keyed(&mut machine, 1, None);
    let Alone::From(before) = alone(&machine, ME, &solo.policy, false, false, WALL) else {
        panic!()
    };
    solo.keyed(&mut machine, 2, None);
    let (into, other) = (SessionId([8; 16]), SessionId([9; 16]));
    let fence = |solo: &mut Solo, machine: &mut Session, p, into| {
        solo.on(machine, |machine, ctx, out| fence_at(machine, ctx, p, into, out)).0
    };
    assert_eq!(fence(&mut solo, &mut machine, before.p, into), None, "it went on since");
    assert_eq!(machine.fenced(), None);
    let Alone::From(now) = alone(&machine, ME, &solo.policy, false, false, WALL) else { panic!() };
    assert_eq!(fence(&mut solo, &mut machine, now.p, into), Some(into));
    assert_eq!(fence(&mut solo, &mut machine, now.p, other), Some(into), "once");
    assert_eq!(alone(&machine, ME, &solo.policy, false, false, WALL), Alone::Already(into));
    assert!(!machine.is_owner());
}

#[test]
fn a_fork_goes_on_with_the_numbers_of_the_session_that_it_came_from() {
    let mut solo = Solo::new(alone_policy());
    let mut machine = solo.mint(SID, &[ME]);
    for rid in 1..=6 {
        solo.keyed(&mut machine, rid, None);
    }
    let Alone::From(record) = alone(&machine, ME, &solo.policy, false, false, WALL) else {
        panic!()
    };
    assert!(record.body.floor_keyed > 2, "some requests are forgotten: {:?}", record.body);
    let cfg = Config { now: Members::first(WALL.0, [ME]), prev: None };
    let mut fork = Session::new(SessionId([8; 16]), &solo.process);
    solo.on(&mut fork, |machine, ctx, out| machine.mint_from(ctx, cfg, &record, out));
    // Its client's token names the fork's number: a new key that comes with it is no repeat.
    let first = Solo::number(&solo.keyed(&mut fork, 10, Some(record.p.n)));
    assert!(first > record.p.n);
    Solo::number(&solo.keyed(&mut fork, 11, Some(first)));
    // One that was forgotten before the fork may be, and is not run again.
    let end = solo.keyed(&mut fork, 1, Some(0));
    assert!(matches!(end, Effect::Fail { failure: Failure::BelowFloor, .. }), "{end:?}");
}

#[test]
fn a_begin_is_taken_back_by_the_attempt_that_committed_it_and_leaves_no_trace() {
    let mut solo = Solo::new(SessionPolicy::default());
    let mut machine = solo.mint(SID, &[ME]);
    let released = |end: &Effect| matches!(end, Effect::Release { .. });
    let begin = Stored::Begun(7);
    assert!(released(&solo.ordered(&mut machine, 1, |machine, ctx, exec, base| {
        machine.exec_end(ctx, exec, base, None, begin.clone())
    })));
    assert!(begin.is_begin_of(7) && !begin.is_begin_of(8) && !Stored::Unknown.is_begin_of(7));
    let take_back = |solo: &mut Solo, machine: &mut Session, rid, attempt| {
        let begun = RequestKey([1; 16]);
        let end = solo.ordered(machine, rid, |machine, ctx, exec, base| {
            machine.exec_end_taking_back(ctx, exec, base, begun, attempt)
        });
        assert!(released(&end), "{end:?}");
    };
    // What another attempt began stays, and a repeat gets that answer.
    take_back(&mut solo, &mut machine, 2, 8);
    let end = solo.keyed(&mut machine, 1, None);
    assert!(matches!(&end, Effect::Replay { stored, .. } if *stored == begin), "{end:?}");
    take_back(&mut solo, &mut machine, 3, 7);
    let remembered = |machine: &Session| {
        let Alone::From(record) = alone(machine, ME, &alone_policy(), false, false, WALL) else {
            panic!()
        };
        (record.body.recent.len(), record.body.floor_keyed)
    };
    assert_eq!(remembered(&machine), (0, 0));
    assert!(released(&solo.keyed(&mut machine, 1, None)), "the key was never used");
}

#[test]
fn a_begin_makes_room_for_its_answer_which_a_repeat_of_the_begin_gets() {
    let mut solo = Solo::new(SessionPolicy::default().with(|made| made.recent_keyed_max = 2));
    let mut machine = solo.mint(SID, &[ME]);
    for rid in [1, 2] {
        solo.ordered(&mut machine, !rid, |machine, ctx, exec, base| {
            machine.exec_end(ctx, exec, base, None, Stored::Begun(7))
        });
        Solo::number(&solo.keyed(&mut machine, rid, Some(0)));
    }
    for rid in [1, 2] {
        let end = solo.keyed(&mut machine, !rid, Some(0));
        assert!(matches!(end, Effect::Replay { stored: Stored::Applied, .. }), "{end:?}");
    }
}

fn submit(ticket: u64) -> Submit {
    let rid = RequestKey([u8::try_from(ticket).unwrap(); 16]);
    let ticket = Ticket(ticket);
    Submit { ticket, rid, fingerprint: 1, keyed: false, seen: None, safe: false }
}

#[test]
fn a_request_hears_of_a_session_that_its_takeover_finds_lost_at_once() {
    let mut solo = Solo::new(SessionPolicy::default());
    let mut machine = Session::new(SID, &solo.process);
    let dead =
        || Message::Nack { reason: NackReason::Dead, promised: None, cfg: None, watermark: 0 };
    for peer in [2, 3, 4] {
        solo.on(&mut machine, |machine, ctx, out| machine.on_message(ctx, inc(peer), dead(), out));
    }
    let how = Enter::TakingOver { token: Some(named(2).cfg), peers: Vec::new() };
    let (_, out) =
        solo.on(&mut machine, |machine, ctx, out| machine.enter(ctx, submit(1), how, out));
    let failure = Failure::Lost { ran: false };
    assert_eq!(
        out,
        [
            Effect::Lost { stamp: named(2).cfg.now.stamp },
            Effect::Fail { ticket: Ticket(1), failure }
        ]
    );
    assert_eq!((machine.load(), Look::of(&machine).owns), (0, false));
}

#[test]
fn a_request_joins_a_takeover_that_is_under_way_and_begins_no_other() {
    let mut solo = Solo::new(SessionPolicy::default());
    let mut machine = Session::new(SID, &solo.process);
    let how = || Enter::TakingOver { token: Some(named(2).cfg), peers: vec![inc(5)] };
    solo.on(&mut machine, |machine, ctx, out| machine.enter(ctx, submit(1), how(), out));
    let ballot = machine.ballot();
    assert!(machine.is_taking_over());
    let (_, out) =
        solo.on(&mut machine, |machine, ctx, out| machine.enter(ctx, submit(2), how(), out));
    assert_eq!((machine.ballot(), machine.load(), out), (ballot, 2, Vec::new()));
    // The same one again, as when its answer was lost on the way: it waits already.
    let (_, out) =
        solo.on(&mut machine, |machine, ctx, out| machine.enter(ctx, submit(2), how(), out));
    assert_eq!(out, [Effect::Fail { ticket: Ticket(2), failure: Failure::KeyInUse }]);
}

#[test]
fn a_request_that_takes_this_peer_for_the_owner_in_vain_is_led_on() {
    let mut solo = Solo::new(SessionPolicy::default());
    let mut machine = Session::new(SID, &solo.process);
    machine.note_claim(claim(4, 3));
    let (_, out) = solo.on(&mut machine, |machine, ctx, out| {
        machine.enter(ctx, submit(1), Enter::AsOwner, out);
    });
    assert_eq!(out, [Effect::Redirect { ticket: Ticket(1), to: claim(4, 3) }]);
}

#[test]
fn a_forwarded_request_is_served_by_the_owner_and_by_one_that_is_named_and_knows_of_no_other() {
    let mut solo = Solo::new(SessionPolicy::default());
    let owner = solo.mint(SID, &[ME]);
    let serve = |take_over| Forwarded::Serve { take_over };
    assert_eq!(answer_forward(Some(&owner), ME, ME, true), serve(false));
    assert_eq!(answer_forward(Some(&owner), ME, inc(2), true), serve(false));
    assert_eq!(answer_forward(None, ME, ME, true), serve(true), "named, but it keeps nothing");
    let no = Forwarded::NotOwner { claim: None, cfg: None };
    assert_eq!(answer_forward(None, ME, inc(2), true), no);
    let mut copy = Session::new(SID, &solo.process);
    let cfg = Config { now: Members::first(1, [ME, inc(2), inc(3)]), prev: None };
    let b = Ballot { round: 3, proposer: inc(3) };
    let message = warmhop_core::session::message::Message::Prepare {
        b,
        cfg: cfg.into(),
        want_body: false,
        polite: false,
        nonce: 1,
        expiry: WallTime(9_000),
        into: None,
    };
    solo.on(&mut copy, |it, ctx, out| it.on_message(ctx, inc(3), message, out));
    for named in [ME, inc(2)] {
        match answer_forward(Some(&copy), ME, named, true) {
            Forwarded::NotOwner { claim, .. } => assert_eq!(claim, Some(b)),
            other => panic!("named {named:?}: {other:?}"),
        }
    }
}

#[test]
fn a_peer_that_was_no_member_and_was_deposed_names_its_successor() {
    let solo = Solo::new(SessionPolicy::default());
    let mut machine = Session::new(SID, &solo.process);
    machine.note_claim(claim(4, 3));
    assert_eq!(machine.promised(), None);
    match answer_forward(Some(&machine), ME, ME, true) {
        Forwarded::NotOwner { claim: named, .. } => assert_eq!(named, claim(4, 3)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn failures_that_the_entry_peer_handles_did_not_run() {
    assert!(is_for_entry(&Failure::Lost { ran: false }));
    assert!(is_for_entry(&Failure::WentOn { into: SID, by: ME }));
    assert!(is_for_entry(&Failure::Deposed { to: None, n: 0 }));
    assert!(!is_for_entry(&Failure::Lost { ran: true }));
    assert!(!is_for_entry(&Failure::NoMajority { ran: false }));
    assert_eq!(BACK_OFF, Duration::from_millis(20));
}

#[test]
fn a_peer_was_replaced_once_the_members_without_it_decide_alone() {
    let set = |c, stamp, who: &[u8]| Members {
        c,
        stamp,
        who: who.iter().map(|peer| inc(*peer)).collect(),
    };
    let mut solo = Solo::new(SessionPolicy::default());
    let mut hears = |machine: &mut Session, cfg: Config| {
        let message = Message::Nack {
            reason: NackReason::Higher,
            promised: None,
            cfg: Some(cfg.into()),
            watermark: 0,
        };
        solo.on(machine, |machine, ctx, out| machine.on_message(ctx, inc(2), message, out));
        machine.was_replaced(ME)
    };
    let mut machine = Session::new(SID, &Process::default());
    assert!(!machine.was_replaced(ME), "it knows of no members");
    let before = set(1, 5, &[2, 3]);
    let mut before = Members { who: before.who.into_iter().chain([ME]).collect(), ..before };
    before.who.sort_unstable();
    assert!(!hears(&mut machine, Config { now: before.clone(), prev: None }));
    let after = set(2, 6, &[2, 3, 4]);
    let seal = Config { now: after.clone(), prev: Some(before.into()) };
    assert!(!hears(&mut machine, seal), "its vote counts until the change is made");
    assert!(hears(&mut machine, Config { now: after, prev: None }));
}
