//! Commands that wait until there is an element for them, as they look for one: without waiting.

use bytes::Bytes;

use super::super::frame::Reply;
use super::super::room::Room;
use super::super::value::{List, SortedSet};
use super::{first_of, lists, numbers, sorted, word};

/// From this many milliseconds on, Redis reports a time as if it were below 0.
const MS_BOUND: f64 = 9_223_372_036_854_775_808.0;

/// How long a blocking command waits, in seconds: its last argument, or its first if the command
/// states its number of keys.
///
/// # Errors
/// As Redis does, the errors of other arguments come before those of the timeout. One of more than 2^63
/// milliseconds counts as negative there, and one of less than a millisecond below 0 as 0.
pub(in crate::redis) fn patience(args: &[Bytes]) -> Result<f64, Reply> {
    let mut text = args.last();
    match args.first().map(|name| word(name)).as_deref() {
        Some("BLMPOP") => {
            first_of::check_elements(&args[2..])?;
            text = args.get(1);
        }
        Some("BZMPOP") => {
            first_of::check_members(&args[2..])?;
            text = args.get(1);
        }
        Some("BLMOVE") => {
            lists::End::of(&args[3])?;
            lists::End::of(&args[4])?;
        }
        _ => {}
    }
    let text = text.map_or(&[][..], |text| text);
    let seconds = numbers::nearest_float(text)
        .ok_or_else(|| Reply::error("ERR", "timeout is not a float or out of range"))?;
    // One that is too small to tell from 0 is none the less above it: 0 is no bound at all.
    let is_tiny = seconds == 0.0 && numbers::float(text).is_none() && !text.starts_with(b"-");
    let ms = if is_tiny { 1.0 } else { (seconds * 1000.0).ceil() };
    if !(0.0..MS_BOUND).contains(&ms) {
        return Err(Reply::error("ERR", "timeout is negative"));
    }
    Ok(ms / 1000.0)
}

/// `BLPOP` and `BRPOP`, if there is an element; otherwise they return nothing.
pub(super) fn pop(room: &mut Room, args: &[Bytes]) -> Result<Reply, Reply> {
    patience(args)?;
    let end = if word(&args[0]) == "BLPOP" { lists::End::Left } else { lists::End::Right };
    for key in &args[1..args.len() - 1] {
        if room.read::<List>(key)?.is_none() {
            continue;
        }
        let element = room.write(key, |list: &mut List| {
            let element = end.pop(list);
            Ok((element.is_some(), element))
        })?;
        if let Some(element) = element {
            return Ok(Reply::Array(vec![Reply::Bytes(key.clone()), Reply::Bytes(element)]));
        }
    }
    Ok(Reply::Aborted)
}

/// `BLMOVE` and `BRPOPLPUSH`, if there is an element; otherwise they return nothing.
pub(super) fn move_one(room: &mut Room, args: &[Bytes]) -> Result<Reply, Reply> {
    patience(args)?;
    lists::move_one(room, &args[..args.len() - 1])
}

/// `BLMPOP`, if there is an element; otherwise it returns nothing.
pub(super) fn pop_elements(room: &mut Room, args: &[Bytes]) -> Result<Reply, Reply> {
    patience(args)?;
    first_of::elements(room, &args[2..])
}

/// `BZPOPMIN` and `BZPOPMAX`, if there is a member; otherwise they return nothing.
pub(super) fn pop_scored(room: &mut Room, args: &[Bytes]) -> Result<Reply, Reply> {
    patience(args)?;
    let highest = word(&args[0]) == "BZPOPMAX";
    for key in &args[1..args.len() - 1] {
        if room.read::<SortedSet>(key)?.is_none() {
            continue;
        }
        let gone = room.write(key, |set: &mut SortedSet| {
            let gone = sorted::popped(set, highest, 1);
            Ok((!gone.is_empty(), gone))
        })?;
        if let Some((member, score)) = gone.into_iter().next() {
            let parts = vec![Reply::Bytes(key.clone()), Reply::Bytes(member), Reply::Double(score)];
            return Ok(Reply::Array(parts));
        }
    }
    Ok(Reply::Aborted)
}

/// `BZMPOP`, if there is a member; otherwise it returns nothing.
pub(super) fn pop_members(room: &mut Room, args: &[Bytes]) -> Result<Reply, Reply> {
    patience(args)?;
    first_of::members(room, &args[2..])
}
