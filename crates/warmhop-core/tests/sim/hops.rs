//! Hops from one peer to another, over links that fall silent.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use warmhop_core::affinity::Kind;
use warmhop_core::app::{AppEvent, WantedBy};
use warmhop_core::ids::{Incarnation, PeerId};
use warmhop_core::view::AppState;

use crate::calls::{
    Call, Hint, HopError, HopKind, HopOutcome, HopRefusal, HopReply, LocalError, ReplySession,
    Served,
};
use crate::peer::{Peer, app_name};
use crate::world::{Mailbox, To, World};

const HEARD_LATELY: Duration = Duration::from_millis(50);
/// How often one that waits for a reply looks whether the link still lives.
const LOOK_MS: u64 = 300;

/// What a peer that waits for a reply is woken by.
pub(crate) enum Post {
    Look,
    Reply(HopOutcome),
}

/// Cancels the far side of a hop when its near side ends.
pub(crate) struct CancelFarSide {
    pub(crate) world: Rc<World>,
    pub(crate) task: Rc<Cell<Option<u64>>>,
    pub(crate) ms: u64,
}

impl Drop for CancelFarSide {
    fn drop(&mut self) {
        let task = Rc::clone(&self.task);
        self.world.after(self.ms, To::World, move |world| {
            if let Some(task) = task.get() {
                world.cancel(task);
            }
        });
    }
}

impl Peer {
    pub(crate) fn heard_lately(&self, to: &PeerId, at: usize) -> bool {
        let loads = self.loads.borrow();
        let last = loads.get(&(to.clone(), app_name(at)));
        last.is_some_and(|(_, at)| self.now().since(*at) < HEARD_LATELY)
    }

    /// How long a part of a stream takes from one node to another, which are the ends of this peer's link
    /// to `inc` at `node`; `None` where the link is down. What a cut swallowed is sent again as
    /// long as the link lives, which it does where only one direction was cut, or not for long.
    async fn stream_delay(
        self: &Rc<Self>,
        (from, to): (usize, usize),
        (node, inc): (usize, Incarnation),
    ) -> Option<u64> {
        loop {
            if let Some(delay) = self.world.stream_delay(from, to) {
                return Some(delay);
            }
            self.sleep(LOOK_MS).await;
            if !self.has_link(node, inc) {
                return None;
            }
            self.world.count("streams sent again");
        }
    }

    /// How long an answer takes to the process `inc` at `node`; `None` where that one is gone. The task
    /// that waits ends when nobody waits for the answer any more.
    async fn answer_delay(self: &Rc<Self>, (node, inc): (usize, Incarnation)) -> Option<u64> {
        while self.world.peer_of(inc).is_some() {
            if let Some(delay) = self.world.stream_delay(self.node, node) {
                return Some(delay);
            }
            self.world.count("streams sent again");
            self.sleep(LOOK_MS).await;
        }
        None
    }

    /// Waits until the far process can hear, or the link to it is down: then false.
    pub(crate) async fn reaches(self: &Rc<Self>, node: usize, inc: Incarnation) -> bool {
        let Some(delay) = self.stream_delay((self.node, node), (node, inc)).await else {
            return false;
        };
        self.sleep(delay).await;
        while self.has_link(node, inc) {
            match self.world.peer_of(inc) {
                Some(_) if !self.world.is_paused(node) => return true,
                _ => self.sleep(LOOK_MS).await,
            }
        }
        false
    }

    pub(crate) async fn ask(
        self: &Rc<Self>,
        to: &PeerId,
        call: &mut Call,
        kind: HopKind,
    ) -> Result<HopReply, HopError> {
        if !call.take_body() {
            return Err(HopError::Broken);
        }
        let at = call.asked.slot;
        let careful = !call.asked.is_safe() && !self.heard_lately(to, at);
        let result = self.ask_over_link(to, call, kind, careful).await;
        match &result {
            Ok(_) => {}
            Err(HopError::Refused(HopRefusal::AppFailed)) => call.may_have_run = true,
            Err(HopError::Refused(_)) => call.has_body |= careful || !call.asked.streams,
            Err(HopError::Unreachable) => call.has_body = true,
            Err(HopError::Broken) => call.may_have_run = true,
        }
        result
    }

    pub(crate) async fn ask_over_link(
        self: &Rc<Self>,
        to: &PeerId,
        call: &Call,
        kind: HopKind,
        careful: bool,
    ) -> Result<HopReply, HopError> {
        let world = Rc::clone(&self.world);
        let Some((node, inc)) = crate::node_of(to).zip(self.incarnation_of(to)) else {
            return Err(HopError::Unreachable);
        };
        if !self.has_link(node, inc) {
            self.sleep(world.between(1, 100)).await;
            return Err(HopError::Unreachable);
        }
        if careful || call.asked.streams {
            self.go_ahead(node, inc, call.asked.slot, &kind).await?;
        }
        let post = Mailbox::new();
        let task = Rc::new(Cell::new(None));
        let ms = if world.is_cut(self.node, node) { 2_500 } else { world.between(0, 5) };
        let _cancel = CancelFarSide { world: Rc::clone(&world), task: Rc::clone(&task), ms };
        let Some(delay) = self.stream_delay((self.node, node), (node, inc)).await else {
            return Err(HopError::Broken);
        };
        if let Some(far) = world.peer_of(inc) {
            self.send_after(delay, far, call, kind, &post, task);
        }
        loop {
            let bell = post.clone();
            world.after(LOOK_MS, To::Life(self.life), move |_| bell.put(Post::Look));
            match post.take().await {
                Some(Post::Reply((outcome, load))) => {
                    let key = (to.clone(), app_name(call.asked.slot));
                    self.loads.borrow_mut().insert(key, (load, self.now()));
                    return match outcome {
                        Ok((served, session)) => {
                            let Served { response, served_by, .. } = served;
                            Ok(HopReply { response, session, served_by })
                        }
                        Err(why) => Err(HopError::Refused(why)),
                    };
                }
                Some(Post::Look) if self.has_link(node, inc) => {}
                Some(Post::Look) | None => return Err(HopError::Broken),
            }
        }
    }

    /// Asks the other side whether it is there, and would take a request, before one is sent.
    async fn go_ahead(
        self: &Rc<Self>,
        node: usize,
        inc: Incarnation,
        slot: usize,
        kind: &HopKind,
    ) -> Result<(), HopError> {
        if !self.reaches(node, inc).await {
            return Err(HopError::Unreachable);
        }
        let Some(far) = self.world.peer_of(inc) else { return Err(HopError::Unreachable) };
        let ready = far.slots[slot].borrow().state() == AppState::Ready;
        match self.stream_delay((node, self.node), (node, inc)).await {
            Some(delay) => self.sleep(delay).await,
            None => return Err(HopError::Unreachable),
        }
        if !ready && !matches!(kind, HopKind::Forward(_)) {
            return Err(HopError::Refused(HopRefusal::NotReady));
        }
        Ok(())
    }

    /// Has the request arrive after `delay`, and its reply come back to `post`.
    fn send_after(
        &self,
        delay: u64,
        far: Rc<Peer>,
        call: &Call,
        kind: HopKind,
        post: &Mailbox<Post>,
        task: Rc<Cell<Option<u64>>>,
    ) {
        let world = &self.world;
        let mut call = call.clone();
        call.has_body = true;
        // An order that a confused link delivers twice must not run twice.
        if matches!(kind, HopKind::Exec { .. }) && world.chance(2) && world.faults_on.get() {
            let (far, kind, call) = (Rc::clone(&far), kind.clone(), call.clone());
            world.count("orders repeated");
            world.after(delay + world.below(500), To::Life(far.life), move |world| {
                let life = far.life;
                world.spawn(Some(life), async move {
                    let _ = far.hop_door(kind, call).await;
                });
            });
        }
        let (near_life, near, post) = (self.life, (self.node, self.inc), post.clone());
        world.after(delay, To::Life(far.life), move |world| {
            let life = far.life;
            let id = world.spawn(Some(life), async move {
                let outcome = far.hop_door(kind, call).await;
                if let Some(delay) = far.answer_delay(near).await {
                    far.world
                        .after(delay, To::Life(near_life), move |_| post.put(Post::Reply(outcome)));
                }
            });
            task.set(Some(id));
        });
    }

    pub(crate) async fn hop_door(self: &Rc<Self>, kind: HopKind, mut call: Call) -> HopOutcome {
        let at = call.asked.slot;
        if matches!(kind, HopKind::Wake) {
            self.tell(at, AppEvent::Wanted(WantedBy::Request));
        }
        let ready = self.slots[at].borrow().state() == AppState::Ready;
        let load = || self.slots[at].borrow().load();
        // Only the owner of a session may have the request executed elsewhere.
        if !ready && !matches!(kind, HopKind::Forward(_)) {
            return (Err(HopRefusal::NotReady), load());
        }
        let local = |error| match error {
            LocalError::NotReady | LocalError::BodyGone => HopRefusal::NotReady,
            LocalError::Refused(done) => HopRefusal::Exec(done),
            LocalError::Failed => HopRefusal::AppFailed,
        };
        let outcome = match kind {
            HopKind::Wake => Err(HopRefusal::NotReady),
            HopKind::Plain => match self.run_here(&mut call, None).await {
                Ok((response, _)) => Ok((Served::here(self, response), ReplySession::None)),
                Err(error) => Err(local(error)),
            },
            HopKind::Exec { sid, exec } => match self.execute_here(&mut call, sid, &exec).await {
                Ok((response, done)) => {
                    Ok((Served::here(self, response), ReplySession::Done(done)))
                }
                Err(error) => Err(local(error)),
            },
            HopKind::Forward(forward) => {
                self.serve_forwarded(&mut call, &forward).await.map(|served| {
                    let session = match served.entry.as_ref().map(|entry| &entry.kind) {
                        Some(Kind::Portable { cfg, owner, n }) => ReplySession::Committed {
                            hint: Hint { cfg: cfg.clone(), owner: *owner, n: *n },
                            replayed: served.replayed,
                        },
                        _ => ReplySession::None,
                    };
                    (served, session)
                })
            }
        };
        (outcome, load())
    }
}
