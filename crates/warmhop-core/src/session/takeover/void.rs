//! Births that failed, by the report of their beginners.
//!
//! Other peers remember a birth that they promised, and cannot tell whether anything was proposed
//! by it; a takeover has to close it, which takes a majority of its members. If those are gone,
//! nobody could ever close it. But the beginner knows: as long as it does not own the session by
//! its birth, nothing was proposed, and once it has given the birth up, nothing will be, since no
//! ballot is used twice. So it forgets its own births that it gave up
//! ([`Session::forget_void_birth`]). Its report of births, at a ballot above such a birth, then
//! means that the births left out of it failed ([`Word`]). It says nothing of births up to a record
//! that it holds, which nobody need remember any more.
//!
//! The beginner keeps its memory for as long as the others keep theirs (`keep_until` in
//! `birth.rs`): if it has forgotten the session, so have they.

use alloc::sync::Arc;
use alloc::vec::Vec;

use super::Takeover;
use crate::ids::{Ballot, Incarnation, Position};
use crate::session::message::{Birth, Config, Part};
use crate::session::{Role, Session};

/// One peer's report about the births that it began itself.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(in crate::session) struct Word {
    /// It covers births up to this ballot, which the peer had promised by then.
    up_to: Ballot,
    /// And above this one, of the record that the peer holds.
    above: Option<Ballot>,
    /// The configurations in which it came to own the session, or still tries to begin it.
    own: Vec<Arc<Config>>,
    tries: bool,
}

impl Session {
    /// Forgets a birth that this peer gave up, or that its copy has outvoted since by a higher
    /// promise: it can no longer own the session by it.
    pub(in crate::session) fn forget_void_birth(&mut self) {
        let Some(tried) = self.copy.tries() else { return };
        let tries = match &self.role {
            Role::Preparing(takeover) => takeover.b == tried,
            Role::None | Role::Owner(_) => false,
        };
        if !tries || self.copy.promised() > Some(tried) {
            self.copy.came_to_nothing();
        }
    }

    /// Takes the `word` of `from`.
    pub(in crate::session) fn hear_word(&mut self, from: Incarnation, word: Option<Word>) {
        if let (Role::Preparing(takeover), Some(word)) = (&mut self.role, word) {
            takeover.hear_word(from, word);
        }
    }

    /// Whether nobody can tell any more that a birth failed which cannot be closed: its beginner is
    /// gone, or came to own the session by it.
    pub(in crate::session) fn is_shut_in_by(&self, takeover: &Takeover, birth: &Birth) -> bool {
        let by = birth.b.proposer;
        let word = takeover.words.get(&by).filter(|word| birth.b <= word.up_to);
        let is_settled = word.is_some_and(|word| !word.tries);
        (is_settled || self.is_gone_for_good(by))
            && !takeover.is_void(birth)
            && !takeover.closes(&birth.cfg)
            && self.can_never_close(takeover, &birth.cfg)
    }
}

impl Word {
    /// The meaning of a report of `from`, which had promised `up_to` and names all `births` that it
    /// knows up to that, and a record at `held`.
    pub(in crate::session) fn of(
        from: Incarnation,
        up_to: Ballot,
        births: &[Birth],
        held: Option<Position>,
        part: Part,
    ) -> Self {
        let own = births.iter().filter(|birth| birth.b.proposer == from);
        let own = own.map(|birth| birth.cfg.clone()).collect();
        let above = held.map(|p| p.ballot);
        Self { up_to, above, own, tries: matches!(part, Part::Trying(_)) }
    }

    fn is_about(&self, birth: &Birth) -> bool {
        birth.b <= self.up_to && self.above < Some(birth.b)
    }
}

impl Takeover {
    pub(in crate::session) fn hear_word(&mut self, from: Incarnation, word: Word) {
        if self.words.get(&from).is_none_or(|known| known.up_to <= word.up_to) {
            self.words.insert(from, word);
        }
    }

    /// Whether the beginner of `birth` has reported since that the birth failed.
    pub(in crate::session) fn is_void(&self, birth: &Birth) -> bool {
        let word = self.words.get(&birth.b.proposer);
        word.is_some_and(|word| word.is_about(birth) && !word.own.contains(&birth.cfg))
    }
}
