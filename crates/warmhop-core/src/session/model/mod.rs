//! The model check: every order of events within a bound, over the machines themselves.
//!
//! Messages that were sent stay sent, and any of them may arrive at any time, again, or never: that
//! is loss, duplication, reordering and delay. A crash is silence, a restart another incarnation.
//! Time does not pass; losing patience is an event like any other. Where a session lasts for a moment
//! the clock moves on at any time, for all peers at once, and each looks at it whenever it likes: one that
//! stands still, or is cut off, does so late. The state of a session is the
//! list of the requests applied, so that the history is directly visible.
//!
//! For births by key it assumes the following. The setup gives each peer's first beliefs about the
//! mesh, which may differ in any way from peer to peer (too few, too many, silent or not), but a
//! process that is reported as gone is gone. That a process was reborn is known to everyone who
//! takes part before it is asked, or to nobody (in truth within a gossip round, or by the answers).
//! No peer forgets a birth before what it protects can no longer be chosen. Of any two beginners
//! one knows two peers that the other knows. A fork is not modelled.
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
    hand_over_and_shared_reads,
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
