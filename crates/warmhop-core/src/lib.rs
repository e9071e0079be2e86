//! The decisions of the warmhop mesh: where a request goes, when an app starts, which beliefs about
//! other peers hold, who may commit a change to a session.
//!
//! # The law
//!
//! A decision is a function of its inputs: an event or a request, a view, [`ids::Now`], a seed. It
//! returns effects or a verdict for the runtime to carry out. It never waits, holds no lock, opens
//! nothing, reads no clock, draws no randomness and iterates no randomly seeded map; the same
//! inputs give the same outputs on every machine, so that a trace from production can be replayed
//! as a test. Input that is late, doubled or unknown changes nothing and is counted; bytes from a
//! client or a peer never panic. A broken invariant may panic, if continuing could give a session
//! two histories.
//!
//! That no IO hides here is proved by the compiler: the crate is `no_std` with `alloc`, and
//! `no-std-proof/` links it into a program that could not be built if std were pulled in.
//!
//! # Bird's-eye view
//!
//! ```text
//!        clients                          other peers
//!           │ requests                        │ news, hops, session messages
//! ┌─────────▼─────────────────────────────────▼───────────── the runtime ──┐
//! │  sockets · clocks · tasks · certificates · encoding                    │
//! │     │ Question     │ AppEvent    │ News         │ cookie   │ messages  │
//! │ ┌───▼────┐     ┌───▼────┐    ┌───▼────┐    ┌────▼─────┐ ┌──▼───────┐   │
//! │ │ route  │     │  app   │    │  view  │    │ affinity │ │ session  │   │
//! │ │ decide │     │ one    │    │ what   │    │ token,   │ │ one      │   │
//! │ │        │     │ copy   │    │ others │    │ when to  │ │ register │   │
//! │ │        │     │ here   │    │ say    │    │ move     │ │ each     │   │
//! │ └───┬────┘     └───┬────┘    └───┬────┘    └────┬─────┘ └──┬───────┘   │
//! │     │ Decision     │ AppEffect   │ snapshots    │ Token    │ effects   │
//! └─────▼──────────────▼─────────────▼──────────────▼──────────▼───────────┘
//!        below them all: rank (who of many) · config (tunables) · ids (newtypes)
//! ```
//!
//! Policy modules know [`ids`], [`config`] and what they decide about. [`app`] never knows
//! [`session`]; nothing here imports [`route`]: its callers are outside. Of sessions, [`affinity`]
//! knows only the shape of a configuration, which its token carries.
//!
//! | question | module |
//! | --- | --- |
//! | Why did my request hop, wait, or get 503? | [`route`] |
//! | When does an app count as ready, and when is a failed start tried again? | [`app`] |
//! | What did this peer believe of that one, and since when? | [`view`] |
//! | When is a ready copy taken out of service, and when is it back? | [`health`] |
//! | Which peers keep an app ready? | [`keep`] |
//! | Who is a session's third member? | [`rank`] |
//! | What is in the cookie; why did affinity move? | [`affinity`] |
//! | Who may commit to a session after a partition? | [`session`] |
//! | Where did my request find its session, and why was it taken over, forked or lost? | [`session::entry`] |
//! | When is a member replaced, and who succeeds an owner? | [`session::repair`] |
//! | What does a client get in place of an answer? | [`problem`] |
//!
//! # Invariants
//!
//! Assertions, tests and scenarios cite them by number.
//!
//! Of a session, a register replicated on up to three peers:
//!
//! * **I1** One body for each position: records of equal positions are equal.
//! * **I2** What a copy promised never falls, and its record is replaced by a later one only.
//! * **I3** No vote is cast in a configuration whose votes may have been forgotten.
//! * **I4** Chosen records, ordered by position, extend one another.
//! * **I5** The open configuration `c + 1` is proposed only after the seal from `c` is chosen.
//! * **I6** Each request key occurs once in a history.
//! * **I7** Responses come only from records that are chosen and open.
//! * **I8** A read reflects every change acknowledged before it arrived.
//! * **I9** A position is used for one attempt: an abandoned number is spent, and a proposal
//!   that left its owner is never abandoned.
//!
//! Of routing:
//!
//! * **I10** A request is never sent again to a peer that did not take it, and to two peers at
//!   most; it never waits while a ready peer may still be tried.
//! * **I11** A request that arrived by a hop is served where it arrived or refused: it never hops, so
//!   no chain and no loop of hops exists. It is refused at once, or, if it has had its turn at its
//!   entry peer, after [`TURN_WITHIN`](crate::route::TURN_WITHIN) without a place.
//! * **I12** A request that may have reached an app runs again only if it is safe, or if its
//!   session's register applies it once.
//!
//! Of beliefs about other peers:
//!
//! * **I13** A belief is a function of the set of news heard, not of their order or number.
//! * **I14** News of a former life of a peer says nothing about its present one.
//! * **I15** A peer that leaves moves only what it was ranked first for; a peer that joins takes
//!   only what it is ranked first for.
//!
//! Of affinity:
//!
//! * **I16** A token that this cluster did not make chooses nothing, and one that it made proves
//!   nothing but its sessions' ids: a session's register alone decides who owns it.
//! * **I17** A session whose owner serves moves to where its client arrives after consecutive
//!   requests only, and at most once in an interval.
//!
//! Of an app on a peer:
//!
//! * **I18** At most one start is under way or one copy serves, however many want it; where a new
//!   copy is wanted, one start beside the one that serves. Beside them at most
//!   [`app::LEAVING_MAX`] former copies are ending. A report of another attempt than those changes
//!   nothing.
//! * **I19** A copy is stopped for idleness or surplus only while nothing is in flight on it, and
//!   no next one starts.
//! * **I20** A copy that is replaced serves until the next one is ready.
//!
//! # Words
//!
//! *peer* one running process of the mesh · *app* a named thing that answers HTTP and is slow to
//! start · *copy of an app* one running instance of it · *ready* it answers on this peer · *hop*
//! one stream from the peer a client reached, its *entry peer*, to a peer where the app is ready ·
//! *news* what a peer says of itself, *belief* what another makes of it · *session* the bytes that
//! an app keeps about one client · *owner* the one peer that may commit changes to a session ·
//! *copy of a session* a peer that holds a replica of it · *handoff* a change of owner ·
//! *affinity* the part of a cookie that names the peer to come back to. The glossary in
//! `ARCHITECTURE.md` has the rest.
#![no_std]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod affinity;
pub mod app;
pub mod config;
pub mod cookie;
pub mod health;
pub mod ids;
pub mod keep;
pub mod matching;
pub mod octets;
pub mod own_id;
pub mod problem;
pub mod queue;
pub mod rank;
pub mod route;
pub mod scale;
pub mod session;
pub mod version;
pub mod view;
