//! The subscriptions of the whole mesh, for `PUBSUB`: each peer is asked.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures_util::future::join_all;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Limited};
use tokio::time::timeout;
use tracing::debug;
use warmhop::ids::{AppName, PeerId};
use warmhop::{Body, BoxError, Mesh};

use super::arguments::bounded;
use super::arguments::{checked_pattern, unknown_subcommand, word, wrong_count};
use super::frame::{REQUEST_BYTES_MAX, Reply};
use super::pubsub::{COUNTED_WITHIN, Hub, What};

/// The service that peers offer to each other.
const SERVICE: &str = "redis-listeners";
/// How many bytes of channel names one peer answers at most.
const NAMES_BYTES_MAX: usize = 8 * 1024 * 1024;

/// What a peer is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Question {
    /// The channels with subscribers that match a pattern.
    Names(What, Option<Bytes>),
    /// The number of subscribers of each.
    Counts(What, Vec<Bytes>),
    /// The patterns that have subscribers.
    Patterns,
}

impl Question {
    /// The question of a client's `PUBSUB`.
    fn of(args: &[Bytes]) -> Result<Self, Reply> {
        match (word(&args[1]).as_str(), &args[2..]) {
            (name @ ("CHANNELS" | "SHARDCHANNELS"), [] | [_]) => {
                let pattern = args.get(2).cloned();
                pattern.as_ref().map_or(Ok(()), |it| checked_pattern(it))?;
                let what = if name == "CHANNELS" { What::Channel } else { What::Shard };
                Ok(Self::Names(what, pattern))
            }
            ("NUMSUB", channels) => Ok(Self::Counts(What::Channel, channels.to_vec())),
            ("SHARDNUMSUB", channels) => Ok(Self::Counts(What::Shard, channels.to_vec())),
            ("NUMPAT", []) => Ok(Self::Patterns),
            ("HELP", []) => Err(Reply::Array(vec![Reply::status("PUBSUB CHANNELS|NUMPAT|NUMSUB")])),
            ("CHANNELS" | "SHARDCHANNELS", _) => {
                let name = String::from_utf8_lossy(&args[1]);
                let detail = format!(
                    "unknown subcommand or wrong number of arguments for '{name}'. Try PUBSUB HELP."
                );
                Err(Reply::error("ERR", detail))
            }
            ("NUMPAT" | "HELP", _) => {
                let subcommand = String::from_utf8_lossy(&args[1]).to_ascii_lowercase();
                Err(wrong_count(&format!("pubsub|{subcommand}")))
            }
            _ => Err(unknown_subcommand("PUBSUB", &args[1])),
        }
    }

    fn pack(&self) -> Bytes {
        let (kind, names) = match self {
            Self::Names(What::Shard, pattern) => (1, pattern.iter().cloned().collect()),
            Self::Names(_, pattern) => (0, pattern.iter().cloned().collect()),
            Self::Counts(What::Shard, names) => (3, names.clone()),
            Self::Counts(_, names) => (2, names.clone()),
            Self::Patterns => (4, Vec::new()),
        };
        let mut bytes = BytesMut::new();
        bytes.put_u8(kind);
        put_names(&mut bytes, names);
        bytes.freeze()
    }

    fn unpack(mut bytes: Bytes) -> Option<Self> {
        let kind = bytes.try_get_u8().ok()?;
        let names = names_in(bytes)?;
        Some(match kind {
            0 => Self::Names(What::Channel, names.into_iter().next()),
            1 => Self::Names(What::Shard, names.into_iter().next()),
            2 => Self::Counts(What::Channel, names),
            3 => Self::Counts(What::Shard, names),
            4 => Self::Patterns,
            _ => return None,
        })
    }

    /// This peer's answer, as it is sent: names, or a number for each name in the question.
    fn answer(&self, hub: &Hub) -> Bytes {
        let mut bytes = BytesMut::new();
        match self {
            Self::Names(what, pattern) => {
                put_names(&mut bytes, hub.names(*what, pattern.as_ref(), NAMES_BYTES_MAX));
            }
            Self::Patterns => {
                put_names(&mut bytes, hub.names(What::Pattern, None, NAMES_BYTES_MAX));
            }
            Self::Counts(what, names) => {
                for name in names {
                    bytes.put_u32(u32::try_from(hub.count(*what, name)).unwrap_or(u32::MAX));
                }
            }
        }
        bytes.freeze()
    }

    /// The reply to the client, combined from the peers' answers.
    fn reply(&self, answers: Vec<Bytes>) -> Result<Reply, Reply> {
        if let Self::Counts(_, names) = self {
            let mut answers = answers;
            let one = |name: &Bytes| {
                let counts = answers.iter_mut().filter_map(|answer| answer.try_get_u32().ok());
                let count = counts.map(i64::from).sum();
                [Reply::Bytes(name.clone()), Reply::Number(count)]
            };
            // An array, also in version 3 of the protocol.
            return Ok(Reply::Array(names.iter().flat_map(one).collect()));
        }
        let names: BTreeSet<Bytes> = answers.into_iter().filter_map(names_in).flatten().collect();
        if matches!(self, Self::Patterns) {
            return Ok(Reply::Number(i64::try_from(names.len()).unwrap_or(i64::MAX)));
        }
        bounded(names.iter().map(Bytes::len).sum(), "channels, by a pattern")?;
        Ok(Reply::Array(names.into_iter().map(Reply::Bytes).collect()))
    }
}

fn put_names(bytes: &mut BytesMut, names: Vec<Bytes>) {
    for name in names {
        bytes.put_u32(u32::try_from(name.len()).unwrap_or(u32::MAX));
        bytes.put(name);
    }
}

fn names_in(mut bytes: Bytes) -> Option<Vec<Bytes>> {
    let mut names = Vec::new();
    while bytes.has_remaining() {
        let len = usize::try_from(bytes.try_get_u32().ok()?).ok()?;
        names.push((len <= bytes.len()).then(|| bytes.split_to(len))?);
    }
    Some(names)
}

fn service_name() -> AppName {
    AppName::new(SERVICE).expect("a constant of the right form")
}

/// Answers the questions of the other peers of `mesh` about the subscriptions here.
pub(super) fn tell_others(mesh: &Mesh, hub: &Arc<Hub>) {
    let hub = Arc::clone(hub);
    mesh.offer_to_peers(service_name(), move |request: Request<Body>| {
        let hub = Arc::clone(&hub);
        async move {
            let body = Limited::new(request.into_body(), REQUEST_BYTES_MAX).collect().await?;
            let question = Question::unpack(body.to_bytes()).ok_or("what is asked is unknown")?;
            Ok::<_, BoxError>(Response::new(Body::from(question.answer(&hub))))
        }
    });
}

async fn ask(mesh: &Mesh, peer: PeerId, question: Bytes) -> Option<Bytes> {
    let asking = async {
        let request = Request::builder().method(Method::POST).uri("/");
        let request = request.body(Body::from(question))?;
        let response = mesh.ask_peer(&peer, &service_name(), request).await?;
        let body = Limited::new(response.into_body(), 2 * NAMES_BYTES_MAX).collect().await?;
        Ok::<_, BoxError>(body.to_bytes())
    };
    match timeout(COUNTED_WITHIN, asking).await {
        Ok(Ok(answer)) => Some(answer),
        Ok(Err(error)) => {
            debug!(%peer, %error, "a peer does not tell who listens there");
            None
        }
        Err(_) => None,
    }
}

/// Answers `PUBSUB` for all peers that answer within a second.
pub(super) async fn about(hub: &Hub, mesh: Option<&Mesh>, args: &[Bytes]) -> Reply {
    let question = match Question::of(args) {
        Ok(question) => question,
        Err(reply) => return reply,
    };
    let mut answers = vec![question.answer(hub)];
    if let Some(mesh) = mesh {
        let packed = question.pack();
        let asked = mesh.others().into_iter().map(|peer| ask(mesh, peer, packed.clone()));
        answers.extend(join_all(asked).await.into_iter().flatten());
    }
    question.reply(answers).unwrap_or_else(|refused| refused)
}

/// As [`about`], for the subscriptions at this peer.
pub(super) fn about_here(hub: &Hub, args: &[Bytes]) -> Reply {
    let reply = Question::of(args).and_then(|question| question.reply(vec![question.answer(hub)]));
    reply.unwrap_or_else(|refused| refused)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_arrives_as_it_was_sent_and_a_truncated_one_does_not() {
        let [a, b] = ["a", "bc"].map(Bytes::from);
        for question in [
            Question::Names(What::Channel, None),
            Question::Names(What::Shard, Some(b.clone())),
            Question::Counts(What::Channel, vec![a.clone(), b.clone()]),
            Question::Counts(What::Shard, vec![]),
            Question::Patterns,
        ] {
            assert_eq!(Question::unpack(question.pack()), Some(question));
        }
        let packed = Question::Counts(What::Channel, vec![a, b]).pack();
        assert_eq!(Question::unpack(packed.slice(..packed.len() - 1)), None);
        assert_eq!(Question::unpack(Bytes::new()), None);
    }
}
