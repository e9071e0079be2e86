//! Lists, from the left to the right.

use bytes::Bytes;

use super::super::events::Deed;
use super::super::frame::Reply;
use super::super::room::Room;
use super::super::value::List;
use super::{count, length, not_negative, number, owned, span, syntax, word};

/// An end of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Left,
    Right,
}

impl End {
    pub(super) fn of(text: &[u8]) -> Result<Self, Reply> {
        match word(text).as_str() {
            "LEFT" => Ok(Self::Left),
            "RIGHT" => Ok(Self::Right),
            _ => Err(syntax()),
        }
    }

    pub(super) fn pop(self, list: &mut List) -> Option<Bytes> {
        if self == Self::Left { list.pop_front() } else { list.pop_back() }
    }

    fn peek(self, list: &List) -> Option<&Bytes> {
        if self == Self::Left { list.front() } else { list.back() }
    }

    fn push(self, list: &mut List, element: Bytes) {
        if self == Self::Left { list.push_front(element) } else { list.push_back(element) }
    }
}

/// `LPUSH`, `RPUSH`, `LPUSHX` and `RPUSHX`.
pub(super) fn push(room: &mut Room, args: &[Bytes]) -> Result<Reply, Reply> {
    let name = word(&args[0]);
    let end = if name.starts_with('L') { End::Left } else { End::Right };
    if name.ends_with('X') && room.read::<List>(&args[1])?.is_none() {
        return Ok(Reply::Number(0));
    }
    room.write(&args[1], |list: &mut List| {
        args[2..].iter().for_each(|element| end.push(list, owned(element)));
        Ok((true, length(list.len())))
    })
}

/// `LPOP` and `RPOP`.
pub(super) fn pop(room: &mut Room, args: &[Bytes]) -> Result<Reply, Reply> {
    let end = if word(&args[0]).starts_with('L') { End::Left } else { End::Right };
    let asked = match &args[2..] {
        [] => None,
        [asked] => Some(count(asked)?),
        _ => return Err(super::wrong_count(&word(&args[0]))),
    };
    if room.read::<List>(&args[1])?.is_none() {
        return Ok(if asked.is_some() { Reply::Aborted } else { Reply::Null });
    }
    room.write(&args[1], |list: &mut List| match asked {
        None => {
            let element = end.pop(list);
            Ok((element.is_some(), Reply::optional(element)))
        }
        Some(asked) => {
            let gone: Vec<Reply> = (0..asked.min(list.len()))
                .filter_map(|_| end.pop(list))
                .map(Reply::Bytes)
                .collect();
            Ok((!gone.is_empty(), Reply::Array(gone)))
        }
    })
}

pub(super) fn len(room: &mut Room, args: &[Bytes]) -> Result<Reply, Reply> {
    Ok(length(room.read::<List>(&args[1])?.map_or(0, List::len)))
}

pub(super) fn range(room: &mut Room, args: &[Bytes]) -> Result<Reply, Reply> {
    let (start, stop) = (number(&args[2])?, number(&args[3])?);
    let Some(list) = room.read::<List>(&args[1])? else { return Ok(Reply::Array(Vec::new())) };
    let places = span(start, stop, list.len());
    Ok(Reply::Array(list.range(places).cloned().map(Reply::Bytes).collect()))
}

/// The place of an element, counted from the end where below 0.
fn place(at: i64, len: usize) -> Option<usize> {
    let len = i64::try_from(len).ok()?;
    let at = if at < 0 { at.checked_add(len)? } else { at };
    usize::try_from(at).ok().filter(|_| at < len)
}

pub(super) fn index(room: &mut Room, args: &[Bytes]) -> Result<Reply, Reply> {
    let Some(list) = room.read::<List>(&args[1])? else { return Ok(Reply::Null) };
    let at = number(&args[2])?;
    Ok(Reply::optional(place(at, list.len()).and_then(|at| list.get(at)).cloned()))
}

pub(super) fn set(room: &mut Room, args: &[Bytes]) -> Result<Reply, Reply> {
    if room.read::<List>(&args[1])?.is_none() {
        return Err(Reply::error("ERR", "no such key"));
    }
    let at = number(&args[2])?;
    room.write(&args[1], |list: &mut List| {
        let at = place(at, list.len());
        let element = at.and_then(|at| list.get_mut(at));
        *element.ok_or_else(|| Reply::error("ERR", "index out of range"))? = owned(&args[3]);
        Ok((true, Reply::OK))
    })
}

pub(super) fn remove(room: &mut Room, args: &[Bytes]) -> Result<Reply, Reply> {
    let asked = number(&args[2])?;
    room.write(&args[1], |list: &mut List| {
        let mut left = match asked {
            0 => usize::MAX,
            asked => usize::try_from(asked.unsigned_abs()).unwrap_or(usize::MAX),
        };
        let before = list.len();
        let mut stays = |element: &Bytes| {
            let goes = left > 0 && *element == args[3];
            left -= usize::from(goes);
            !goes
        };
        if asked < 0 {
            let mut kept: List = list.drain(..).rev().filter(|it| stays(it)).collect();
            kept.make_contiguous().reverse();
            *list = kept;
        } else {
            list.retain(|element| stays(element));
        }
        let gone = before - list.len();
        Ok((gone > 0, length(gone)))
    })
}

pub(super) fn trim(room: &mut Room, args: &[Bytes]) -> Result<Reply, Reply> {
    let (start, stop) = (number(&args[2])?, number(&args[3])?);
    if room.read::<List>(&args[1])?.is_none() {
        return Ok(Reply::OK);
    }
    let trims = room.write(&args[1], |list: &mut List| {
        let before = list.len();
        let places = span(start, stop, before);
        list.truncate(places.end);
        list.drain(..places.start);
        let trims = list.len() < before;
        Ok((trims, trims))
    })?;
    if !trims {
        // Redis tells of it anyway.
        room.note(&args[1], Deed::Wrote);
    }
    Ok(Reply::OK)
}

pub(super) fn insert(room: &mut Room, args: &[Bytes]) -> Result<Reply, Reply> {
    let behind = match word(&args[2]).as_str() {
        "BEFORE" => 0,
        "AFTER" => 1,
        _ => return Err(syntax()),
    };
    if room.read::<List>(&args[1])?.is_none() {
        return Ok(Reply::Number(0));
    }
    room.write(&args[1], |list: &mut List| {
        let Some(at) = list.iter().position(|element| *element == args[3]) else {
            return Ok((false, Reply::Number(-1)));
        };
        list.insert(at + behind, owned(&args[4]));
        Ok((true, length(list.len())))
    })
}

/// `LPOS`.
pub(super) fn position(room: &mut Room, args: &[Bytes]) -> Result<Reply, Reply> {
    let (mut rank, mut asked, mut len_max) = (1, None, 0);
    for option in args[3..].chunks(2) {
        let [name, value] = option else { return Err(syntax()) };
        match word(name).as_str() {
            "RANK" => {
                rank = number(value)?;
                if rank == 0 || rank == i64::MIN {
                    let detail = "RANK can't be zero: use 1 to start from the first match, 2 from \
                                  the second ... or use negative to start from the end of the list";
                    return Err(Reply::error("ERR", detail));
                }
            }
            "COUNT" => {
                asked = Some(not_negative(value, "COUNT")?);
            }
            "MAXLEN" => {
                len_max = not_negative(value, "MAXLEN")?;
            }
            _ => return Err(syntax()),
        }
    }
    let list = room.read::<List>(&args[1])?;
    let len = list.map_or(0, List::len);
    let looked_at = if len_max == 0 { len } else { len_max.min(len) };
    let is_it = |at: &usize| list.and_then(|list| list.get(*at)) == Some(&args[2]);
    let skipped = usize::try_from(rank.unsigned_abs() - 1).unwrap_or(usize::MAX);
    let wanted = match asked {
        None => 1,
        Some(0) => usize::MAX,
        Some(asked) => asked,
    };
    let places: Box<dyn Iterator<Item = usize>> = match rank > 0 {
        true => Box::new((0..len).take(looked_at)),
        false => Box::new((0..len).rev().take(looked_at)),
    };
    let mut found = places.filter(is_it).skip(skipped).take(wanted).map(length);
    Ok(match asked {
        None => found.next().unwrap_or(Reply::Null),
        Some(_) => Reply::Array(found.collect()),
    })
}

fn move_between(
    room: &mut Room,
    (from, to): (&Bytes, &Bytes),
    (out, into): (End, End),
) -> Result<Reply, Reply> {
    if room.read::<List>(from)?.is_none() {
        return Ok(Reply::Null);
    }
    room.read::<List>(to)?;
    let element = match from == to {
        // At once: a list that is empty in between would lose its end.
        true => room.write(from, |list: &mut List| {
            let element = out.pop(list);
            element.iter().for_each(|element| into.push(list, element.clone()));
            Ok((element.is_some(), element))
        })?,
        false => room.read::<List>(from)?.and_then(|list| out.peek(list)).cloned(),
    };
    let Some(element) = element else { return Ok(Reply::Null) };
    // In this order, in which Redis tells of it.
    if from != to {
        room.write(to, |list: &mut List| {
            into.push(list, element.clone());
            Ok((true, ()))
        })?;
    }
    room.write(from, |list: &mut List| {
        if from != to {
            out.pop(list);
        }
        Ok((true, ()))
    })?;
    Ok(Reply::Bytes(element))
}

/// `LMOVE` and `RPOPLPUSH`.
pub(super) fn move_one(room: &mut Room, args: &[Bytes]) -> Result<Reply, Reply> {
    let ends = match args {
        [_, _, _, out, into, ..] => (End::of(out)?, End::of(into)?),
        _ => (End::Right, End::Left),
    };
    move_between(room, (&args[1], &args[2]), ends)
}
