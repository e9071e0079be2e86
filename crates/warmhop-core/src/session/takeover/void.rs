//! Births that came to nothing, by the word of whoever began them.
//!
//! Others remember a birth that they promised, and cannot tell whether anything was proposed by it;
//! whoever takes the session over has to close it, which takes a majority of its members. Where those
//! are gone, nobody could ever close it. But whoever began it knows: as long as it does not own the
//! session by it, nothing was proposed, and once it has given the birth up, nothing will be, since no
//! ballot is used twice. So it forgets a birth of its own that it gave up
//! ([`Session::forget_void_birth`]), and what it tells of births, at a ballot above that one, is its
//! word that those which it leaves out came to nothing ([`Word`]). That says nothing of those up to a
//! record that it holds, which nobody need remember any more.
//!
//! It keeps its memory for as long as the others keep theirs (`keep_until` in `birth.rs`): where it has
//! forgotten the session, so have they.

use alloc::sync::Arc;
use alloc::vec::Vec;

use super::Takeover;
use crate::ids::{Ballot, Incarnation, Position};
use crate::session::message::{Birth, Config, Part};
use crate::session::{Role, Session};

/// What one peer said of the births that it began itself.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(in crate::session) struct Word {
    /// It speaks of those up to this ballot, which it had promised by then.
    up_to: Ballot,
    /// And of those above this one, of the record that it holds.
    above: Option<Ballot>,
    /// Where it came to own the session, or still tries to begin it.
    own: Vec<Arc<Config>>,
    tries: bool,
}

impl Session {
    /// Forgets a birth that this peer gave up, or that is outvoted by what its copy promised since: it
    /// does not come to own the session by it any more.
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

    /// `from` told its `word`.
    pub(in crate::session) fn hear_word(&mut self, from: Incarnation, word: Option<Word>) {
        if let (Role::Preparing(takeover), Some(word)) = (&mut self.role, word) {
            takeover.hear_word(from, word);
        }
    }

    /// Whether nobody can tell any more that nothing came of a birth that cannot be closed: whoever
    /// began it is gone, or came to own the session by it.
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
    /// What `from`, which had promised `up_to`, says by telling all `births` that it knows of up to
    /// that, and of a record at `held`.
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

    /// Whether whoever began the session by `birth` said since that nothing came of that.
    pub(in crate::session) fn is_void(&self, birth: &Birth) -> bool {
        let word = self.words.get(&birth.b.proposer);
        word.is_some_and(|word| word.is_about(birth) && !word.own.contains(&birth.cfg))
    }
}
