//! The subject of an exploration: which peers exist, what is requested, and how much may go wrong.

/// A request's effect on the state, which is the list of the requests applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    /// Appends itself.
    Write,
    /// Safe: runs beside others, changes nothing.
    Read,
    /// Runs alone, and changes nothing.
    Look,
    /// Declared safe, but appends itself all the same.
    Liar,
}

impl Kind {
    pub(super) fn changes(self) -> bool {
        matches!(self, Kind::Write | Kind::Liar)
    }
}

/// One attempt of a client to have a request applied. Attempts of one number share its key.
#[derive(Debug, Clone, Copy)]
pub(super) struct Attempt {
    pub(super) number: u8,
    pub(super) kind: Kind,
    pub(super) keyed: bool,
}

/// How the session began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Born {
    /// Drawn by one peer, and a token that names it has left.
    Named,
    /// Drawn by one peer; nobody else takes it over before a token has left.
    Drawn,
    /// Known by its token alone: the peer that serves it takes it over.
    Token,
    /// Known by its key alone: the peer that serves it searches for it, and begins it if no peer
    /// knows of it.
    Key,
}

/// One peer's beliefs about the mesh, if it does not know everyone as living.
#[derive(Debug, Clone, Copy)]
pub(super) struct Belief {
    pub(super) at: u8,
    pub(super) knows: &'static [u8],
    pub(super) silent: &'static [u8],
    /// Those of the silent that it has met, but not heard for long.
    pub(super) absent: &'static [u8],
    /// The members with which it begins a session.
    pub(super) members: &'static [u8],
}

/// What may happen in one exploration. Lists contain peers by index.
#[derive(Debug, Clone)]
pub(super) struct Setup {
    pub(super) name: &'static str,
    pub(super) peers: u8,
    pub(super) members: &'static [u8],
    pub(super) born: Born,
    /// Who draws it, where anybody does. Ballots of one round are ordered by the places of their peers.
    pub(super) drawn_at: u8,
    pub(super) beliefs: &'static [Belief],
    /// Where requests may run; [`SELF`] is at their owner.
    pub(super) executors: &'static [u8],
    pub(super) attempts: &'static [Attempt],
    pub(super) takers: &'static [u8],
    pub(super) takeovers: u8,
    /// Changes of members that an owner may begin: who leaves, who joins.
    pub(super) swaps: &'static [(&'static [u8], Option<u8>)],
    pub(super) changes: u8,
    pub(super) heirs: &'static [u8],
    pub(super) handoffs: u8,
    pub(super) restarters: &'static [u8],
    pub(super) restarts: u8,
    /// Nobody hears of a restart, nor heard of the former process.
    pub(super) unheard: bool,
    pub(super) forgetters: &'static [u8],
    pub(super) forgettings: u8,
    /// What the clock shows next, one after the other, in milliseconds. Where it moves at all, what is written
    /// lasts for half a second.
    pub(super) walls: &'static [u64],
    /// Peers that may refuse any copy for want of room.
    pub(super) full: &'static [u8],
    pub(super) refusals: u8,
    /// Executions reported as failed while they run.
    pub(super) abandons: u8,
    /// Owners that lose patience: everyone who waits for a majority fails.
    pub(super) give_ups: u8,
    pub(super) keyed_max: usize,
    pub(super) unkeyed_max: usize,
    /// How many of the first attempts are applied at the first peer, with all their consequences
    /// delivered, before exploration begins.
    pub(super) settled: u8,
    /// Links on which nothing arrives until then.
    pub(super) settled_apart: &'static [(u8, u8)],
    /// Links on which nothing arrives once the exploration has begun: from, to.
    pub(super) cut: &'static [(u8, u8)],
    /// An owner's own executions take no time.
    pub(super) instant: bool,
    /// Orders and results arrive again, too. In truth each is sent once, on a stream of its own.
    pub(super) echoes: bool,
    /// Messages that can have no effect any more are dropped. They could still inform a peer of a
    /// ballot that it has outgrown; that they are lost is one of the cases anyway.
    pub(super) prune: bool,
    /// A restarted process takes its former identity.
    pub(super) amnesia: bool,
    /// A repeat names what its client has seen by then, not what it had seen at first.
    pub(super) unpinned: bool,
    /// A proposal may be reported as a failed execution.
    pub(super) abandon_proposals: bool,
}

/// In a list of executors: the owner itself.
pub(super) const SELF: u8 = u8::MAX;

impl Setup {
    pub(super) const PLAIN: Setup = Setup {
        name: "",
        peers: 3,
        members: &[0, 1, 2],
        born: Born::Named,
        drawn_at: 0,
        beliefs: &[],
        executors: &[SELF],
        attempts: &[],
        takers: &[],
        takeovers: 0,
        swaps: &[],
        changes: 0,
        heirs: &[],
        handoffs: 0,
        restarters: &[],
        restarts: 0,
        unheard: false,
        forgetters: &[],
        forgettings: 0,
        walls: &[],
        full: &[],
        refusals: 0,
        abandons: 0,
        give_ups: 0,
        keyed_max: 4,
        unkeyed_max: 4,
        settled: 0,
        settled_apart: &[],
        cut: &[],
        instant: true,
        echoes: false,
        prune: true,
        amnesia: false,
        unpinned: false,
        abandon_proposals: false,
    };
}
