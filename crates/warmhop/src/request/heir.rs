//! The renewal of a session's id: the session's contents are stored under a new id, its *heir*,
//! before the old one is ended, so that no crash of a peer can lose them. The response leaves once
//! both changes are chosen.

use std::sync::Arc;

use warmhop_core::affinity::{Entry, Kind};
use warmhop_core::ids::{Position, RequestKey, SessionId, SessionKey};
use warmhop_core::session::entry::{Enter, first_members};
use warmhop_core::session::message::{Body, ExecDone, Heir, Record};
use warmhop_core::session::{Outcome, Session as Machine, Submit};

use crate::request::node::Node;
use crate::request::portable::Portable;
use crate::request::problem::{Problem, outcome_unknown};
use crate::request::served::Served;
use crate::sessions::events::Event;
use crate::sessions::store::InLine;

impl Node {
    /// Reports the outcome of a run to the session's machine, once its heir exists if there is one.
    pub(crate) async fn conclude(
        &self,
        portable: &Portable<'_>,
        line: &mut InLine,
        done: ExecDone,
    ) -> Result<(), Problem> {
        let key = line.key.clone();
        match self.with_heir(portable, &key, done).await {
            Ok(done) => {
                line.executed(Outcome::from(done));
                Ok(())
            }
            Err(problem) => {
                line.executed(Outcome::Failed);
                Err(problem)
            }
        }
    }

    /// Creates the heir if `done` ends the session's id, and records it there.
    async fn with_heir(
        &self,
        portable: &Portable<'_>,
        key: &SessionKey,
        done: ExecDone,
    ) -> Result<ExecDone, Problem> {
        let ExecDone::Changed { mut body, voted: false } = done else { return Ok(done) };
        if body.ended.as_ref().is_none_or(|ended| ended.by != portable.rid) {
            return Ok(ExecDone::Changed { body, voted: false });
        }
        if portable.drawn {
            // No token of it has left, so no client could use the old id.
            Arc::make_mut(&mut body).ended = None;
            return Ok(ExecDone::Changed { body, voted: false });
        }
        let heir = match body.state.is_some() {
            true => Some(self.make_heir(key, &body).await?),
            false => None,
        };
        let ending = Arc::make_mut(&mut body);
        ending.state = None;
        if let Some(ended) = &mut ending.ended {
            ended.heir = heir;
        }
        Ok(ExecDone::Changed { body, voted: false })
    }

    /// Creates the session that continues `body`, and waits until it is chosen.
    async fn make_heir(&self, key: &SessionKey, body: &Body) -> Result<Heir, Problem> {
        let failed = |why: &str| outcome_unknown(&format!("the session's new id {why}"));
        let new = SessionKey { app: key.app.clone(), sid: SessionId(rand::random()) };
        let cfg = {
            let view = self.view();
            first_members(new.sid, None, self.store.policy().copies, &self.here(&view))
        };
        let newest = self.store.read(key, |machine| {
            machine
                .ballot()
                .zip(machine.token_hint())
                .map(|(ballot, hint)| Position { ballot, n: hint.n })
        });
        let p = newest
            .flatten()
            .ok_or_else(|| failed("was requested at a peer that does not own the session"))?;
        let body = Arc::new(Body { ended: None, ..body.clone() });
        let record = Record { p, cfg: Arc::new(cfg.clone()), body };
        self.store
            .with(&new, true, |machine, ctx, out| machine.mint_from(ctx, cfg, &record, out))
            .ok_or_else(|| failed("finds no room on this peer"))?;
        let submit = |ticket| Submit {
            ticket,
            rid: RequestKey(rand::random()),
            fingerprint: 0,
            keyed: false,
            seen: None,
            safe: true,
        };
        let line = self.store.enqueue(&new, submit, Enter::AsOwner);
        let mut line = line.ok_or_else(|| failed("finds no room on this peer"))?;
        // The first turn comes once its first record is chosen.
        let Event::Turn = line.next().await else {
            return Err(failed("was not stored by a majority of the peers asked to hold it"));
        };
        let hint = self.store.read(&new, Machine::token_hint).flatten();
        let hint = hint.ok_or_else(|| failed("was given up"))?;
        Ok(Heir { sid: new.sid, cfg: hint.cfg, owner: hint.owner, n: hint.n })
    }

    /// Sets in `served` what the client's token should name after a request that was committed, or
    /// answered from the stored response. If the session's id was ended, only the request that
    /// ended it learns of the heir.
    pub(crate) fn name_session(
        &self,
        portable: &Portable<'_>,
        key: &SessionKey,
        entry: Entry,
        served: &mut Served,
    ) {
        let ended = self.store.read(key, |machine| machine.ended().cloned()).flatten();
        let Some(ended) = ended else {
            served.entry = Some(entry);
            return;
        };
        if ended.by != portable.rid {
            return;
        }
        match ended.heir {
            Some(Heir { sid, cfg, owner, n }) => {
                let kind = Kind::Portable { cfg, owner, n };
                let expiry = self.clock.wall().after(self.store.policy().ttl);
                served.entry =
                    Some(Entry { app: key.app.clone(), sid, kind, expiry, version: None });
            }
            None => served.cleared = true,
        }
    }
}
