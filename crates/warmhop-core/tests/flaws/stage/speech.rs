//! How the narrator speaks of what it sees.

use std::time::Duration;

use warmhop_core::ids::{Ballot, Incarnation, Position};
use warmhop_core::session::message::{
    Body, BodyRef, Config, ExecDone, Members, Message, NackReason,
};
use warmhop_core::session::{Failure, Outcome};

use super::Kind;

pub(super) fn spoken_outcome(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Done(ExecDone::Changed { body, voted }) => {
            let vote = if *voted { "voted for" } else { "no vote" };
            format!("changed to [{}], {vote}", list_of(body))
        }
        Outcome::Done(ExecDone::Unchanged { confirmed: true }) => "unchanged, confirmed".into(),
        Outcome::Done(ExecDone::Unchanged { confirmed: false }) => "unchanged".into(),
        Outcome::Done(ExecDone::NeedBase) => "NeedBase".into(),
        Outcome::Done(ExecDone::Refused { reason, promised, .. }) => {
            let by = promised.map_or(String::new(), |b| format!(", having promised {}", ballot(b)));
            format!("refused, {}{by}", nack_reason(*reason))
        }
        Outcome::Failed => "failed".into(),
    }
}

pub(super) fn spoken_message(message: &Message) -> (&'static str, String) {
    match message {
        Message::Prepare { b, cfg, nonce, .. } => {
            ("Prepare", format!("{} in {} #{nonce}", ballot(*b), config(cfg)))
        }
        Message::Promise { b, nonce, accepted, .. } => {
            let held = match accepted {
                None => "holding nothing".into(),
                Some(info) => {
                    let body = info.body.as_ref();
                    let body = body.map_or(String::new(), |it| format!(" [{}]", list_of(it)));
                    format!("holding {}{body} in {}", position(info.p), config(&info.cfg))
                }
            };
            ("Promise", format!("{} #{nonce}, {held}", ballot(*b)))
        }
        Message::Accept { p, cfg, body } => {
            let body = match body {
                BodyRef::Full(body) => format!("[{}]", list_of(body)),
                BodyRef::Same(at) => format!("same as {}", position(*at)),
            };
            ("Accept", format!("{} {body} in {}", position(*p), config(cfg)))
        }
        Message::Accepted { p } => ("Accepted", position(*p)),
        Message::NeedFull { p } => ("NeedFull", position(*p)),
        Message::Nack { reason, promised, .. } => {
            let by = promised.map_or(String::new(), |b| format!(", having promised {}", ballot(b)));
            ("Nack", format!("{}{by}", nack_reason(*reason)))
        }
        Message::Locate { .. } => ("Locate", String::new()),
        Message::Begin { b, cfg, .. } => ("Begin", format!("{} in {}", ballot(*b), config(cfg))),
        Message::Free { b, births, .. } => {
            let before = births.iter().map(|birth| config(&birth.cfg)).collect::<Vec<_>>();
            ("Free", format!("{}, begun before: {}", ballot(*b), before.join(" ")))
        }
        Message::Located { p, cfg, .. } => {
            let held = p.map_or("nothing".into(), position);
            let cfg = cfg.as_ref().map_or(String::new(), |cfg| format!(" in {}", config(cfg)));
            ("Located", format!("{held}{cfg}"))
        }
        Message::Invite { cfg } => ("Invite", config(cfg)),
        Message::Retire { stamp } => ("Retire", format!("up to stamp {stamp}")),
        Message::Delta | Message::Lease => ("Reserved", String::new()),
    }
}

pub(super) fn nack_reason(reason: NackReason) -> &'static str {
    match reason {
        NackReason::Higher => "Higher",
        NackReason::Forgotten => "Forgotten",
        NackReason::Fenced(_) => "Fenced",
        NackReason::Full => "Full",
        NackReason::Dead => "Dead",
    }
}

pub(super) fn reason(failure: Failure) -> String {
    match failure {
        Failure::Deposed { to: Some(claim), .. } => {
            let owner = life_name(claim.proposer);
            format!("outcome unknown, {owner} owns the session and can tell")
        }
        Failure::WentOn { by, .. } => format!("it went on as another session at {}", life_name(by)),
        Failure::NoMajority { ran: true } => "no majority answered, it may be applied yet".into(),
        Failure::NoMajority { ran: false } => "no majority answered, it did not run".into(),
        Failure::Lost { .. } => "the session is lost".into(),
        Failure::BelowFloor => "it may have been applied and its answer forgotten".into(),
        Failure::KeyInUse => "the same request is under way".into(),
        Failure::ExecutionFailed => "its execution failed".into(),
        other => format!("{other:?}"),
    }
}

pub(super) fn parse(request: &str) -> (Kind, &str) {
    let mut kind = Kind { keyed: false, read: false, safe: false, large: false };
    let (words, name) = request.rsplit_once(' ').expect("a request says what it is");
    for word in words.split(' ') {
        match word {
            "change" => {}
            "keyed" => kind.keyed = true,
            "large" => kind.large = true,
            "look" => kind.read = true,
            "read" => (kind.read, kind.safe) = (true, true),
            _ => panic!("a request is no {word}"),
        }
    }
    (kind, name)
}

pub(super) fn letters(names: &str) -> impl Iterator<Item = char> {
    names.split(' ').filter(|name| !name.is_empty()).map(letter)
}

pub(super) fn letter(name: &str) -> char {
    name.chars().next().expect("a peer has a name")
}

pub(super) fn life(letter: char, nth: u8) -> Incarnation {
    let mut bytes = [0; 16];
    bytes[..2].copy_from_slice(&[letter as u8, nth]);
    // As `Incarnation::of` has it: its peer, and when it began.
    (bytes[4], bytes[15]) = (letter as u8, nth);
    Incarnation(bytes)
}

pub(super) fn life_name(inc: Incarnation) -> String {
    let letter = inc.0[0] as char;
    match inc.0[1] {
        1 => letter.to_string(),
        nth => format!("{letter}{nth}"),
    }
}

pub(super) fn ballot(b: Ballot) -> String {
    format!("{}.{}", b.round, life_name(b.proposer))
}

pub(super) fn position(p: Position) -> String {
    format!("{}/{}", ballot(p.ballot), p.n)
}

pub(super) fn config(cfg: &Config) -> String {
    let set = |set: &Members| {
        let who: Vec<String> = set.who.iter().copied().map(life_name).collect();
        format!("c{}{{{}}}", set.c, who.join(" "))
    };
    let prev = cfg.prev.as_ref().map_or(String::new(), |prev| format!("<{}", set(prev)));
    format!("{}{prev}", set(&cfg.now))
}

pub(super) fn spoken(span: Duration) -> String {
    match span.as_millis() {
        ms if ms % 60_000 == 0 => format!("{} min", ms / 60_000),
        ms if ms % 1_000 == 0 => format!("{} s", ms / 1_000),
        ms => format!("{ms} ms"),
    }
}

pub(super) fn list_of(body: &Body) -> String {
    body.state.as_ref().map_or(String::new(), |it| String::from_utf8_lossy(it).into_owned())
}

pub(super) fn words(list: &str) -> Vec<String> {
    list.split(' ').filter(|word| !word.is_empty()).map(str::to_owned).collect()
}

pub(super) fn has(list: &[String], name: &str) -> bool {
    list.iter().any(|item| item.split('/').next() == Some(name))
}
