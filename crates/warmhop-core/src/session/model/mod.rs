//! The model check: every order of events within a bound, over the machines themselves.
//!
//! Messages that were sent stay sent, and any of them may arrive at any time, again, or never: that
//! is loss, duplication, reordering and delay. A crash is silence, a restart another incarnation.
//! Time does not pass; losing patience is an event like any other. Where a session lasts for a moment
//! the clock moves on at any time, for all peers at once, and each looks at it whenever it likes: one that
//! is suspended, or cut off, does so late. The state of a session is the
//! list of the requests applied, so that the history is directly visible.
//!
//! # What it assumes, and what makes it true
//!
//! * **Deaths are proven.** A process that is reported as gone never votes again. Two things prove it:
//!   an answer by another incarnation of the same name, and news of one (`view.rs`). Of two members the
//!   one that is left goes on by this alone, so that two untrue reports, one about each of the two,
//!   would make two histories; one would not, because either way the vote of the same member is
//!   needed. An operator's word (`members --gone`) is refused for a peer that anybody heard lately
//!   (`View::write_off`), and is not checked beyond that.
//! * **Identities and random numbers are not used twice**: incarnations, nonces, ids, the rounds of one
//!   process. A machine that is restored from a snapshot of its memory breaks this.
//! * **Views.** For births by key, the setup gives each peer's first beliefs about the mesh, which may
//!   differ in any way from peer to peer (too few, too many, silent or not), and which do not change.
//!   Of any two beginners one knows two peers that the other knows: `Roll` asks every peer that an answer
//!   names, and counts seeds that were never met as missed.
//! * **Rebirths** are known to everyone who takes part before it is asked, or to nobody: in truth within
//!   a gossip round, by the first answer, or from the peer that remembers the former life
//!   (`View::note_former`). Former lives that left in good order are taken for others: of these one may
//!   be a witness, as of three holders two had to leave before one holds anything alone.
//! * **A peer that is paused** acts late on what it was sent, which is one of the orders. That it may
//!   believe what it saw before in the meantime is not modelled: it counts as newborn until it has
//!   heard somebody (`Stillness`).
//! * **Leavers** vote until their processes end, and are struck off by a change of members like any
//!   other; that their copies are not needed then is decided in `repair/struck.rs`, which is no part
//!   of the model.
//! * **Births are remembered** for longer than anything can be chosen that they protect: by the members
//!   for the time that was named and a grace, by others for two (`on_begin`), and by their beginner
//!   (`void.rs`).
//! * **Clocks** show the same everywhere, and are looked at late. In truth they differ, by less than
//!   `forget_grace`: an owner forgets before its members do (`LONGER_THAN_OWNER`), and a session ends
//!   by two clocks (`Body::is_over`).
//! * **The end of a register** that is found lost (`Session::bury`), and of one that is over at some peers
//!   only (`search_without`), are orders to forget, and are not modelled; nor is a fork.
//!
//! The small bound runs with the other tests. The large one explores each setup completely, or up
//! to `STATES` states (some 100 bytes each are kept, and the states of the two outermost levels
//! whole):
//!
//! ```text
//! STATES=20000000 cargo test --release -p warmhop-core --lib model::deep -- --ignored --nocapture
//! ```

mod explore;
mod judge;
mod lives;
mod machine;
mod mutants;
mod narrate;
mod setup;
mod setups;
mod tables;
mod world;

use std::println;

use explore::explore;
use setup::Setup;

/// Explores a setup and asserts that nothing breaks.
fn holds(setup: Setup, states_max: usize) {
    let report = explore(setup, states_max);
    println!(
        "{}: {} states, {} steps deep, {:.1} s{}",
        report.name,
        report.states,
        report.depth,
        report.took.as_secs_f32(),
        if report.complete { ", all" } else { "" },
    );
    if let Some(found) = report.found {
        for (at, step) in (1..).zip(&found.steps) {
            println!("{at:>4}  {step}");
        }
        panic!("{:?}: {}", found.violation.invariant, found.violation.how);
    }
}

/// How many states of each setup the normal tests explore.
const SMALL: usize = 250_000;

macro_rules! setups {
    ($($name:ident),* $(,)?) => {
        $(#[test]
        fn $name() {
            holds(setups::$name(), SMALL);
        })*

        /// The same setups to their ends.
        mod deep {
            $(#[test]
            #[ignore = "takes minutes and gigabytes; the command is in the module's docs"]
            fn $name() {
                let states = std::env::var("STATES").map_or(2_000_000, |text| {
                    text.parse().expect("STATES is a number")
                });
                super::holds(super::setups::$name(), states);
            })*
        }
    };
}

setups!(
    delegated_writes,
    competing_takeovers,
    changes_without_room,
    first_change_without_room,
    begun_without_room,
    delegated_without_room,
    replacement_without_room,
    drawn_where_ballots_are_highest,
    takeover_against_change_of_members,
    members_struck_off_against_takeover,
    two_left_out_against_the_silent_one,
    one_is_left_of_two,
    a_newcomer_is_left_of_two,
    one_is_left_of_three_as_another_leaves,
    amnesia_and_forgetting,
    repeats_and_floors,
    reads_under_takeover,
    handoff_and_shared_reads,
    drawn_and_repeated,
    echoed_orders,
    begun_twice_under_one_key,
    begun_under_a_key_and_forgotten,
    begun_at_both_ends_of_a_cut_link,
    begun_where_one_knows_too_few,
    begun_where_one_knows_too_many,
    begun_on_two_sides_of_a_partition,
    begun_beside_the_reborn,
    begun_beside_the_young,
    begun_beside_the_one_that_holds_it_alone,
    begun_alone_by_each,
    begun_three_times_with_other_members,
    ended_and_begun_again,
    ended_while_a_member_is_away,
    ended_beside_a_peer_that_is_reborn,
    ended_while_taken_over,
    competing_takeovers_against_change_of_members,
);
