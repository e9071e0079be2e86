use std::sync::Arc;

use bytes::Buf as _;
use warmhop_core::ids::{AppName, Ballot, Incarnation, Position, SessionId, SessionKey, WallTime};
use warmhop_core::session::message::{Config, Members, Message};

use super::*;
use crate::links::wire::{self, SESSION_FRAME_BYTES_MAX};

const ME: Incarnation = Incarnation([1; 16]);
const OTHER: Incarnation = Incarnation([2; 16]);

fn lane() -> (Lane, mpsc::Receiver<Bytes>) {
    let (queue, queued) = mpsc::channel(8);
    (Lane::new(queue), queued)
}

fn frame(session: u8, message: Message) -> SessionFrame {
    let key = SessionKey { app: AppName::new("shop").unwrap(), sid: SessionId([session; 16]) };
    SessionFrame { key, to: OTHER, message }
}

fn question(session: u8, nonce: u64) -> SessionFrame {
    let (b, who) = (Ballot { round: 1, proposer: ME }, [ME, OTHER]);
    let cfg = Arc::new(Config { now: Members::first(1, who), prev: None });
    let message = Message::Prepare {
        b,
        cfg,
        want_body: false,
        polite: false,
        nonce,
        expiry: WallTime(0),
        into: None,
    };
    frame(session, message)
}

/// The frames that were sent, piece by piece.
fn sent(queued: &mut mpsc::Receiver<Bytes>) -> Vec<Vec<SessionFrame>> {
    let pieces = std::iter::from_fn(|| queued.try_recv().ok());
    let frames = pieces.map(|mut piece| {
        std::iter::from_fn(|| {
            (!piece.is_empty()).then(|| {
                let length = piece.get_u32() as usize;
                let frame = piece.split_to(length);
                wire::decode::<SessionFrame, SESSION_FRAME_BYTES_MAX>(&frame).unwrap()
            })
        })
        .collect()
    });
    frames.collect()
}

#[test]
fn of_questions_about_one_session_the_last_is_sent_and_in_one_piece_with_others() {
    let (lane, mut queued) = lane();
    assert_eq!(lane.take(question(1, 1)), Ok(true));
    assert_eq!(lane.take(question(2, 2)), Ok(true));
    assert_eq!(lane.take(question(1, 4)), Ok(false));
    // Made by another thread before the one above.
    assert_eq!(lane.take(question(1, 3)), Ok(false));
    assert!(sent(&mut queued).is_empty());
    lane.send_gathered().unwrap();
    assert_eq!(sent(&mut queued), [vec![question(1, 4), question(2, 2)]]);
    lane.send_gathered().unwrap();
    assert!(sent(&mut queued).is_empty());
}

#[tokio::test]
async fn the_sender_of_a_batch_gets_the_outcome_of_its_first_message() {
    let (lane, _queued) = lane();
    lane.take(question(1, 1)).unwrap();
    lane.gathers().await;
}

#[test]
fn no_more_is_gathered_than_a_bound() {
    let (lane, mut queued) = lane();
    for session in 0..=GATHERED_MAX {
        assert_eq!(lane.take(question(session as u8, 1)), Ok(true));
    }
    let pieces = sent(&mut queued);
    assert_eq!(pieces.iter().map(Vec::len).collect::<Vec<_>>(), [GATHERED_MAX]);
    assert_eq!(lane.gathered().len(), 1);
}

#[test]
fn votes_are_sent_at_once() {
    let (lane, mut queued) = lane();
    let p = Position { ballot: Ballot { round: 1, proposer: ME }, n: 1 };
    let vote = frame(1, Message::Accepted { p });
    assert_eq!(lane.take(vote.clone()), Ok(true));
    assert_eq!(sent(&mut queued), [vec![vote]]);
}
