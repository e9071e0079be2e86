//! Commands that take from the first non-empty one of several keys: `LMPOP` and `ZMPOP`.

use bytes::Bytes;

use super::super::frame::Reply;
use super::super::room::Room;
use super::super::value::{List, SortedSet};
use super::{integer, lists, sorted, syntax, word};

/// The request: which keys, which end, how many.
struct Asked<'a> {
    keys: &'a [Bytes],
    end: &'a Bytes,
    many: usize,
}

fn above_zero(text: &[u8], what: &str) -> Result<usize, Reply> {
    let refused = || Reply::error("ERR", format!("{what} should be greater than 0"));
    let number = integer(text).and_then(|number| usize::try_from(number).ok());
    number.filter(|number| *number > 0).ok_or_else(refused)
}

/// Reads `numkeys key [key ...] END [COUNT count]`.
fn asked(args: &[Bytes]) -> Result<Asked<'_>, Reply> {
    let (count, rest) = args.split_first().ok_or_else(syntax)?;
    let count = above_zero(count, "numkeys")?;
    let (keys, rest) = rest.split_at_checked(count).ok_or_else(syntax)?;
    let (end, rest) = rest.split_first().ok_or_else(syntax)?;
    let many = match rest {
        [] => 1,
        [option, many] if word(option) == "COUNT" => above_zero(many, "count")?,
        _ => return Err(syntax()),
    };
    Ok(Asked { keys, end, many })
}

/// `LMPOP`.
pub(super) fn pop_elements(room: &mut Room, args: &[Bytes]) -> Result<Reply, Reply> {
    elements(room, &args[1..])
}

/// Whether the arguments of `LMPOP` have the right form.
pub(super) fn check_elements(args: &[Bytes]) -> Result<(), Reply> {
    lists::End::of(asked(args)?.end).map(|_| ())
}

pub(super) fn elements(room: &mut Room, args: &[Bytes]) -> Result<Reply, Reply> {
    let Asked { keys, end, many } = asked(args)?;
    let end = lists::End::of(end)?;
    for key in keys {
        if room.read::<List>(key)?.is_none() {
            continue;
        }
        let gone = room.write(key, |list: &mut List| {
            let gone: Vec<Reply> =
                std::iter::from_fn(|| end.pop(list)).take(many).map(Reply::Bytes).collect();
            Ok((!gone.is_empty(), gone))
        })?;
        return Ok(Reply::Array(vec![Reply::Bytes(key.clone()), Reply::Array(gone)]));
    }
    Ok(Reply::Aborted)
}

/// `ZMPOP`.
pub(super) fn pop_members(room: &mut Room, args: &[Bytes]) -> Result<Reply, Reply> {
    members(room, &args[1..])
}

/// Whether the arguments of `ZMPOP` have the right form.
pub(super) fn check_members(args: &[Bytes]) -> Result<(), Reply> {
    is_highest(asked(args)?.end).map(|_| ())
}

fn is_highest(end: &[u8]) -> Result<bool, Reply> {
    match word(end).as_str() {
        "MIN" => Ok(false),
        "MAX" => Ok(true),
        _ => Err(syntax()),
    }
}

pub(super) fn members(room: &mut Room, args: &[Bytes]) -> Result<Reply, Reply> {
    let Asked { keys, end, many } = asked(args)?;
    let highest = is_highest(end)?;
    for key in keys {
        if room.read::<SortedSet>(key)?.is_none() {
            continue;
        }
        let gone = room.write(key, |set: &mut SortedSet| {
            let gone = sorted::popped(set, highest, many);
            Ok((!gone.is_empty(), gone))
        })?;
        let pair = |(member, score)| Reply::Array(vec![Reply::Bytes(member), Reply::Double(score)]);
        let gone = Reply::Array(gone.into_iter().map(pair).collect());
        return Ok(Reply::Array(vec![Reply::Bytes(key.clone()), gone]));
    }
    Ok(Reply::Aborted)
}
